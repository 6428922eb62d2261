//! The settings as they are written: a JSON object. It reads the rules of a time zone and the files of TLS.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::others::Others;
use super::{AppConfig, QueueOrder, ResultOptions, Routes, TransportOptions};
use crate::celery::moment::Zone;
use crate::net::tls::ClientTls;
use crate::redis::{Password, RedisConfig, SentinelLogin, load_tls};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    broker_transport_options: WrittenOptions,
    broker_use_ssl: WrittenTls,
    result_backend: Option<String>,
    result_backend_transport_options: WrittenResults,
    redis_backend_use_ssl: WrittenTls,
    result_expires: Option<f64>,
    result_extended: bool,
    enable_utc: Option<bool>,
    timezone: Option<String>,
    task_default_queue: Option<String>,
    task_routes: Value,
    task_default_priority: Option<u8>,
    task_annotations: Option<BTreeMap<String, Map<String, Value>>>,
    task_ignore_result: bool,
    task_store_errors_even_if_ignored: bool,
    task_track_started: bool,
    task_acks_late: Option<bool>,
    task_acks_on_failure_or_timeout: Option<bool>,
    task_acks_on_failure: Option<bool>,
    task_acks_on_timeout: Option<bool>,
    task_reject_on_worker_lost: Option<bool>,
    task_soft_time_limit: Option<f64>,
    task_time_limit: Option<f64>,
    task_default_rate_limit: Value,
    worker_disable_rate_limits: bool,
    worker_prefetch_multiplier: Option<usize>,
    worker_send_task_events: bool,
    task_send_sent_event: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenOptions {
    priority_steps: Option<Vec<u8>>,
    sep: Option<String>,
    queue_order_strategy: QueueOrder,
    global_keyprefix: String,
    visibility_timeout: Option<f64>,
    master_name: Option<String>,
    sentinel_kwargs: Option<Map<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenResults {
    global_keyprefix: String,
    master_name: Option<String>,
    sentinel_kwargs: Option<Map<String, Value>>,
    result_chord_ordered: Option<bool>,
}

/// TLS, or whether there is some.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WrittenTls {
    Whether(Option<bool>),
    How(Map<String, Value>),
}

impl Default for WrittenTls {
    fn default() -> Self {
        Self::Whether(None)
    }
}

/// What Python's `ssl` is told.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsFiles {
    ssl_cert_reqs: Value,
    ssl_check_hostname: Option<bool>,
    ssl_ca_certs: Option<PathBuf>,
    ssl_certfile: Option<PathBuf>,
    ssl_keyfile: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SentinelKwargs {
    username: Option<String>,
    password: Option<String>,
    ssl: Option<bool>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// Reads an object, without what it may hold in the words of an error.
fn of<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())
}

impl WrittenTls {
    /// Blocks on the disk.
    fn load(self) -> Result<Option<ClientTls>, String> {
        match self {
            Self::Whether(None | Some(false)) => Ok(None),
            Self::Whether(Some(true)) => load_tls(None, None).map(Some).map_err(|error| error.to_string()),
            Self::How(files) => of::<TlsFiles>(files)?.load().map(Some),
        }
    }
}

impl TlsFiles {
    fn load(self) -> Result<ClientTls, String> {
        // Python's own number for it is 2.
        let checks = matches!(self.ssl_cert_reqs.as_str(), Some("required" | "CERT_REQUIRED" | "ssl.CERT_REQUIRED"));
        if !(self.ssl_cert_reqs.is_null() || checks || self.ssl_cert_reqs == 2)
            || self.ssl_check_hostname == Some(false)
        {
            return Err("certificates and names are always checked: ssl_cert_reqs is \"required\"".to_owned());
        }
        let own = match (&self.ssl_certfile, &self.ssl_keyfile) {
            (Some(certificate), Some(key)) => Some((certificate.as_path(), key.as_path())),
            (None, None) => None,
            _ => return Err("ssl_certfile goes with ssl_keyfile".to_owned()),
        };
        load_tls(self.ssl_ca_certs.as_deref(), own).map_err(|error| error.to_string())
    }
}

/// Blocks on the disk.
fn sentinel_login(kwargs: Option<Map<String, Value>>) -> Result<SentinelLogin, String> {
    let SentinelKwargs { username, password, ssl, mut more } = of(kwargs.unwrap_or_default())?;
    // How patient a connection is, is set for all of them.
    more.retain(|name, _| !name.starts_with("socket_") && name != "health_check_interval");
    let tls = match ssl {
        Some(true) => Some(of::<TlsFiles>(more)?.load()?),
        _ if more.is_empty() => None,
        _ => {
            let names: Vec<_> = more.keys().cloned().collect();
            return Err(format!("{} goes with \"ssl\": true, or is not known", names.join(", ")));
        }
    };
    if username.is_some() && password.is_none() {
        return Err("it has a username but no password".to_owned());
    }
    Ok(SentinelLogin { user: username, password: password.map(Password::new), tls })
}

impl AppConfig {
    /// Reads the settings from a JSON object with Celery's names, as `{"enable_utc": false, "timezone": "Asia/Tokyo",
    /// "broker_transport_options": {"sep": ":"}}`; times are in seconds. Blocks on the disk.
    ///
    /// Celery's other settings are refused if they change what is in Redis, and else listed in `without_effect`.
    ///
    /// # Errors
    /// All that is wrong, in words.
    pub fn parse(json: &str) -> Result<Self, String> {
        read(json)
    }
}

fn read(json: &str) -> Result<AppConfig, String> {
    let not = |error: serde_json::Error| format!("not Celery settings in JSON: {error}");
    let mut all: Map<String, Value> = serde_json::from_str(json).map_err(not)?;
    let mut others = Others::default();
    others.take(&mut all);
    let Others { mut problems, idle } = others;
    let written: Written = match serde_json::from_value(Value::Object(all)) {
        Ok(written) => written,
        Err(error) => {
            problems.push(not(error));
            return Err(problems.join("; "));
        }
    };
    let defaults = AppConfig::default();
    let mut seconds = |name: &str, value: Option<f64>| {
        let value = value?;
        let read = Duration::try_from_secs_f64(value);
        read.map_err(|_| problems.push(format!("{name} is {value}; give seconds"))).ok()
    };
    let result_expires = seconds("result_expires", written.result_expires);
    let (options, usual) = (written.broker_transport_options, defaults.broker_transport_options);
    let visibility_timeout = seconds("broker_transport_options.visibility_timeout", options.visibility_timeout);
    let task_soft_time_limit = seconds("task_soft_time_limit", written.task_soft_time_limit);
    let task_time_limit = seconds("task_time_limit", written.task_time_limit);
    let mut note = |name: &str, problem: String| problems.push(format!("{name}: {problem}"));
    let timezone = match written.timezone.as_deref().map(Zone::named) {
        None => defaults.timezone,
        Some(zone) => zone.unwrap_or_else(|error| {
            note("timezone", error);
            defaults.timezone
        }),
    };
    let result_backend = written.result_backend.as_deref().map(RedisConfig::parse).transpose();
    let result_backend = result_backend.unwrap_or_else(|error| {
        note("result_backend", error.to_string());
        None
    });
    let mut tls = |name: &str, written: WrittenTls| {
        written.load().unwrap_or_else(|error| {
            note(name, error);
            None
        })
    };
    let broker_use_ssl = tls("broker_use_ssl", written.broker_use_ssl);
    let redis_backend_use_ssl = tls("redis_backend_use_ssl", written.redis_backend_use_ssl);
    let mut login = |name: &str, kwargs: Option<Map<String, Value>>| {
        sentinel_login(kwargs).unwrap_or_else(|error| {
            note(&format!("{name}.sentinel_kwargs"), error);
            SentinelLogin::default()
        })
    };
    let of_broker = login("broker_transport_options", options.sentinel_kwargs);
    let results = written.result_backend_transport_options;
    let of_results = login("result_backend_transport_options", results.sentinel_kwargs);
    let task_routes = Routes::read(&written.task_routes).unwrap_or_else(|error| {
        note("task_routes", error);
        Routes::default()
    });
    let task_default_rate_limit = match written.task_default_rate_limit {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    let app = AppConfig {
        broker_transport_options: TransportOptions {
            priority_steps: options.priority_steps.unwrap_or(usual.priority_steps),
            sep: options.sep.unwrap_or(usual.sep),
            queue_order_strategy: options.queue_order_strategy,
            global_keyprefix: options.global_keyprefix,
            visibility_timeout: visibility_timeout.unwrap_or(usual.visibility_timeout),
            master_name: options.master_name,
            sentinel_kwargs: of_broker,
        },
        broker_use_ssl,
        result_backend,
        result_backend_transport_options: ResultOptions {
            global_keyprefix: results.global_keyprefix,
            master_name: results.master_name,
            sentinel_kwargs: of_results,
            result_chord_ordered: results.result_chord_ordered.unwrap_or(true),
        },
        redis_backend_use_ssl,
        result_expires: result_expires.unwrap_or(defaults.result_expires),
        enable_utc: written.enable_utc.unwrap_or(defaults.enable_utc),
        timezone,
        task_default_queue: written.task_default_queue.unwrap_or(defaults.task_default_queue),
        task_routes,
        task_default_priority: written.task_default_priority,
        task_annotations: written.task_annotations.unwrap_or_default(),
        task_ignore_result: written.task_ignore_result,
        task_store_errors_even_if_ignored: written.task_store_errors_even_if_ignored,
        result_extended: written.result_extended,
        task_track_started: written.task_track_started,
        task_acks_late: written.task_acks_late.unwrap_or(defaults.task_acks_late),
        task_acks_on_failure_or_timeout: written
            .task_acks_on_failure_or_timeout
            .unwrap_or(defaults.task_acks_on_failure_or_timeout),
        task_acks_on_failure: written.task_acks_on_failure,
        task_acks_on_timeout: written.task_acks_on_timeout,
        task_reject_on_worker_lost: written.task_reject_on_worker_lost.unwrap_or(defaults.task_reject_on_worker_lost),
        task_soft_time_limit,
        task_time_limit,
        task_default_rate_limit,
        worker_disable_rate_limits: written.worker_disable_rate_limits,
        worker_prefetch_multiplier: written.worker_prefetch_multiplier,
        worker_send_task_events: written.worker_send_task_events,
        task_send_sent_event: written.task_send_sent_event,
        without_effect: idle,
    };
    problems.extend(app.problems());
    if problems.is_empty() { Ok(app) } else { Err(problems.join("; ")) }
}
