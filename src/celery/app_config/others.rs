//! Celery's other settings: those that change what is in Redis in ways that are not supported, and those without effect
//! here. Pure.

use serde_json::{Map, Value};

/// A setting, the values that are as good as none, and why no other is.
type Refused = (&'static str, fn(&Value) -> bool, &'static str);

fn none(_: &Value) -> bool {
    false
}

fn off(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn on(value: &Value) -> bool {
    *value == Value::Bool(true)
}

fn json(value: &Value) -> bool {
    value == "json" || value == "application/json"
}

fn with_json(value: &Value) -> bool {
    value.as_array().is_some_and(|formats| formats.iter().any(json))
}

fn empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

fn second(value: &Value) -> bool {
    *value == 2
}

fn direct(value: &Value) -> bool {
    value == "direct"
}

const SIGNED: &str = "messages are neither signed nor checked";
const BY_URL: &str = "give the Redis as a URL";
const ONE_BROKER: &str = "tasks are read and written in the same Redis";
const NO_EXCHANGES: &str = "tasks are sent to queues by their names";
const ONLY_JSON: &str = "only JSON is read and written";
const NOT_PACKED: &str = "it is read either way, and written as it is; leave it out";

/// Settings that are refused unless they say what is so anyway.
const REFUSED: [Refused; 34] = [
    ("accept_content", with_json, ONLY_JSON),
    ("result_accept_content", with_json, ONLY_JSON),
    ("task_serializer", json, ONLY_JSON),
    ("result_serializer", json, ONLY_JSON),
    ("event_serializer", json, ONLY_JSON),
    ("task_protocol", second, "only protocol 2 is spoken"),
    ("task_always_eager", off, "tasks are sent to workers"),
    ("task_compression", none, NOT_PACKED),
    ("result_compression", none, NOT_PACKED),
    ("result_failure_expires", none, "all results are kept as long"),
    ("result_chord_expires", none, "what is kept of a chord is kept as long as a result"),
    ("task_queues", empty, NO_EXCHANGES),
    ("task_default_exchange_type", direct, NO_EXCHANGES),
    ("task_create_missing_queue_exchange_type", direct, NO_EXCHANGES),
    ("task_inherit_parent_priority", off, "a task that follows another has a priority of its own"),
    ("task_retry_on_worker_lost", off, "see task_reject_on_worker_lost"),
    ("control_exchange", |value| value == "celery", "remote control is at celery.pidbox"),
    ("event_exchange", |value| value == "celeryev", "events are at celeryev"),
    ("broker_read_url", none, ONE_BROKER),
    ("broker_write_url", none, ONE_BROKER),
    ("broker_transport", |value| value == "redis" || value == "sentinel", "the broker is a Redis"),
    ("broker_host", none, BY_URL),
    ("broker_port", none, BY_URL),
    ("broker_user", none, BY_URL),
    ("broker_password", none, BY_URL),
    ("broker_vhost", none, BY_URL),
    ("redis_host", none, BY_URL),
    ("redis_port", none, BY_URL),
    ("redis_db", none, BY_URL),
    ("redis_username", none, BY_URL),
    ("redis_password", none, BY_URL),
    ("security_certificate", none, SIGNED),
    ("security_key", none, SIGNED),
    ("worker_direct", off, "a worker has no queue of its own"),
];

/// Options of the transport that are refused unless they say what is so anyway.
const REFUSED_OF_TRANSPORT: [Refused; 8] = [
    ("fanout_prefix", on, "channels have the number of the database in front"),
    ("fanout_patterns", on, "events go to channels by their routing keys"),
    ("ack_emulation", on, "what a worker holds is in unacked"),
    ("unacked_key", |value| value == "unacked", "what a worker holds is in unacked"),
    ("unacked_index_key", |value| value == "unacked_index", "what a worker holds is in unacked"),
    ("deadletter_queue", none, "what nobody can run is in phalanx.aside"),
    ("body_encoding", |value| value == "base64", "bodies are written in base64"),
    ("sentinel_fanout_compat", off, "channels have the number of the database in front"),
];

/// Options of the transport without effect here.
const IDLE_OF_TRANSPORT: &str = " client_name health_check_interval max_connections min_other_sentinels \
    retry_on_timeout socket_connect_timeout socket_keepalive socket_keepalive_options socket_timeout \
    unacked_mutex_expire unacked_mutex_key unacked_restore_interval unacked_restore_limit unacked_restore_throttle ";

/// Settings without effect here.
const IDLE: &str = " broker_channel_error_retry broker_connection_max_retries broker_connection_retry \
    broker_connection_retry_on_startup broker_connection_timeout broker_failover_strategy broker_heartbeat \
    broker_heartbeat_checkrate broker_login_method broker_native_delayed_delivery_queue_type \
    broker_pool_acquire_timeout broker_pool_limit broker_url control_queue_durable control_queue_exclusive \
    control_queue_expires control_queue_ttl event_queue_durable event_queue_exclusive event_queue_expires \
    event_queue_prefix event_queue_ttl imports include redis_max_connections redis_retry_on_timeout \
    redis_socket_connect_timeout redis_socket_keepalive redis_socket_timeout result_backend_always_retry \
    result_backend_base_sleep_between_retries_ms result_backend_max_retries \
    result_backend_max_sleep_between_retries_ms result_cache_max result_chord_join_timeout \
    result_chord_retry_interval result_exchange result_exchange_type result_persistent security_cert_store \
    security_digest security_key_password task_allow_error_cb_on_chord_header task_create_missing_queue_type \
    task_create_missing_queues task_default_delivery_mode task_default_exchange task_default_queue_type \
    task_default_routing_key task_eager_propagates task_publish_retry task_publish_retry_policy \
    task_queue_max_priority task_remote_tracebacks task_repr_maxlevels task_store_eager_result worker_agent \
    worker_autoscaler worker_cancel_long_running_tasks_on_connection_loss worker_concurrency worker_consumer \
    worker_deduplicate_successful_tasks worker_detect_quorum_queues worker_disable_prefetch \
    worker_enable_prefetch_count_reduction worker_enable_remote_control worker_enable_soft_shutdown_on_idle \
    worker_eta_task_limit worker_hijack_root_logger worker_log_color worker_log_datefmt worker_log_format \
    worker_lost_wait worker_max_memory_per_child worker_max_tasks_per_child worker_pool worker_pool_putlocks \
    worker_pool_restarts worker_pool_start_method worker_proc_alive_timeout worker_redirect_stdouts \
    worker_redirect_stdouts_level worker_soft_shutdown_timeout worker_state_db worker_task_log_datefmt \
    worker_task_log_format worker_timer worker_timer_precision ";

/// How the settings of `beat` and of other stores than Redis begin.
const ELSEWHERE: [&str; 12] = [
    "arangodb_",
    "azureblockblob_",
    "beat_",
    "cache_",
    "cassandra_",
    "cosmosdbsql_",
    "couchbase_",
    "database_",
    "elasticsearch_",
    "gcs_",
    "mongodb_",
    "s3_",
];

/// What was found of settings that are not ours.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Others {
    /// What is refused, in words.
    pub problems: Vec<String>,
    /// Names of those without effect.
    pub idle: Vec<String>,
}

impl Others {
    /// Takes from the settings what is not ours.
    pub(super) fn take(&mut self, settings: &mut Map<String, Value>) {
        self.sort("", settings, &REFUSED, |name| {
            is_listed(name, IDLE) || ELSEWHERE.iter().any(|start| name.starts_with(start))
        });
        for options in ["broker_transport_options", "result_backend_transport_options"] {
            if let Some(Value::Object(map)) = settings.get_mut(options) {
                let prefix = format!("{options}.");
                self.sort(&prefix, map, &REFUSED_OF_TRANSPORT, |name| is_listed(name, IDLE_OF_TRANSPORT));
            }
        }
    }

    fn sort(
        &mut self,
        prefix: &str,
        settings: &mut Map<String, Value>,
        refused: &[Refused],
        is_idle: impl Fn(&str) -> bool,
    ) {
        settings.retain(|name, value| {
            if let Some((_, is_good, why)) = refused.iter().find(|(refused, ..)| refused == name) {
                if !value.is_null() && !is_good(value) {
                    // Not the value: it may be a password.
                    self.problems.push(format!("{prefix}{name} is not supported: {why}"));
                }
                false
            } else if is_idle(name) {
                self.idle.push(format!("{prefix}{name}"));
                false
            } else {
                true
            }
        });
    }
}

fn is_listed(name: &str, list: &str) -> bool {
    list.split_whitespace().any(|listed| listed == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn taken(settings: Value) -> (Others, Vec<String>) {
        let (mut others, Value::Object(mut settings)) = (Others::default(), settings) else { unreachable!() };
        others.take(&mut settings);
        (others, settings.keys().cloned().collect())
    }

    #[test]
    fn what_changes_redis_is_refused_and_what_changes_nothing_is_named() {
        let (others, left) = taken(json!({
            "task_serializer": "pickle", "accept_content": ["json", "pickle"], "task_protocol": 2, "task_queues": null,
            "worker_pool": "prefork", "mongodb_x": 1, "enable_utc": true, "typo": 1, "security_key": "/secret",
            "broker_transport_options": {"sep": ":", "fanout_prefix": false, "socket_timeout": 5},
        }));
        assert_eq!(others.idle, ["worker_pool", "mongodb_x", "broker_transport_options.socket_timeout"]);
        assert_eq!(left, ["enable_utc", "typo", "broker_transport_options"]);
        let problems = others.problems.join("\n");
        for problem in
            ["task_serializer is not", "security_key is not", "broker_transport_options.fanout_prefix is not"]
        {
            assert!(problems.contains(problem), "{problem}: {problems}");
        }
        assert_eq!((others.problems.len(), problems.contains("/secret")), (3, false));
    }

    #[test]
    fn what_says_what_is_so_anyway_is_taken() {
        let good = json!({
            "accept_content": ["application/json"], "result_serializer": "json", "task_always_eager": false,
            "task_queues": {}, "task_default_exchange_type": "direct", "control_exchange": "celery",
            "broker_transport": "redis", "task_compression": null, "worker_direct": false,
            "result_backend_transport_options": {"fanout_patterns": true, "unacked_key": "unacked"},
        });
        assert_eq!(taken(good).0, Others::default());
    }
}
