//! What counts for the tasks of each name: the options that they were registered with, and the settings of the
//! application where those say nothing. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::rate::Rate;
use crate::celery::app_config::AppConfig;
use crate::celery::canvas::Defaults;
use crate::celery::options::TaskOptions;

/// What counts for the tasks of one name.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// Where the settings of the application say something, so do these.
    options: TaskOptions,
    rate: Option<Rate>,
    acks_late: bool,
    acks_on_failure: bool,
    acks_on_timeout: bool,
    rejects_on_worker_lost: bool,
    ignores_result: bool,
    stores_errors: bool,
    tracks_started: bool,
}

impl Policy {
    /// # Errors
    /// What is of no use in the options, in words.
    fn new(options: TaskOptions, app: &AppConfig) -> Result<Self, String> {
        let mut options = options;
        options.problem().map_or(Ok(()), Err)?;
        options.rate_limit = options.rate_limit.or_else(|| app.task_default_rate_limit.clone());
        options.soft_time_limit = options.soft_time_limit.or(app.task_soft_time_limit);
        options.time_limit = options.time_limit.or(app.task_time_limit);
        let filled = |own: &mut Option<bool>, of_app: bool| *own.get_or_insert(of_app);
        let both = filled(&mut options.acks_on_failure_or_timeout, app.task_acks_on_failure_or_timeout);
        let rate = options.rate_limit.clone().map(Value::String).map(|rate| Rate::read(&rate)).transpose()?.flatten();
        Ok(Self {
            acks_late: filled(&mut options.acks_late, app.task_acks_late),
            acks_on_failure: filled(&mut options.acks_on_failure, app.task_acks_on_failure.unwrap_or(both)),
            acks_on_timeout: filled(&mut options.acks_on_timeout, app.task_acks_on_timeout.unwrap_or(both)),
            rejects_on_worker_lost: filled(&mut options.reject_on_worker_lost, app.task_reject_on_worker_lost),
            ignores_result: filled(&mut options.ignore_result, app.task_ignore_result),
            stores_errors: filled(&mut options.store_errors_even_if_ignored, app.task_store_errors_even_if_ignored),
            tracks_started: filled(&mut options.track_started, app.task_track_started),
            rate: rate.filter(|_| !app.worker_disable_rate_limits),
            options,
        })
    }

    pub(super) fn options(&self) -> &TaskOptions {
        &self.options
    }

    /// How many may begin in a time.
    pub(super) fn rate(&self) -> Option<&Rate> {
        self.rate.as_ref()
    }

    /// The soft and the hard time limit, in seconds.
    pub(super) fn time_limits(&self) -> (Option<f64>, Option<f64>) {
        let seconds = |limit: Option<std::time::Duration>| limit.map(|limit| limit.as_secs_f64());
        (seconds(self.options.soft_time_limit), seconds(self.options.time_limit))
    }

    /// Whether the message is acknowledged when the task has ended.
    pub(super) fn acks_late(&self) -> bool {
        self.acks_late
    }

    /// Whether the message of a task that failed is kept for the operator.
    pub(super) fn keeps_failed(&self) -> bool {
        self.acks_late && !self.acks_on_failure
    }

    /// Whether a task that is over its time limit goes back to its queue.
    pub(super) fn returns_late(&self) -> bool {
        self.acks_late && !self.acks_on_timeout
    }

    /// Whether what had begun on a worker that is lost has failed.
    pub(super) fn fails_if_lost(&self) -> bool {
        self.acks_late && !self.rejects_on_worker_lost
    }

    /// Whether no result is stored, where the message says nothing.
    pub(super) fn ignores_result(&self) -> bool {
        self.ignores_result
    }

    /// Whether a failure is stored although nobody wants the result.
    pub(super) fn stores_errors(&self) -> bool {
        self.stores_errors
    }

    pub(super) fn tracks_started(&self) -> bool {
        self.tracks_started
    }
}

/// What counts for all tasks that a worker runs, by their names.
#[derive(Debug)]
pub(super) struct Policies {
    registered: BTreeMap<String, Policy>,
    /// For tasks of other names.
    other: Policy,
}

impl Policies {
    /// # Errors
    /// What is of no use in the options or in the settings, in words.
    pub(super) fn new<'a>(
        tasks: impl Iterator<Item = (&'a str, &'a TaskOptions)>,
        app: &AppConfig,
    ) -> Result<Self, String> {
        let empty = Map::new();
        // As with Celery, what is said of all goes last.
        let of = |name: &str| app.task_annotations.get(name).unwrap_or(&empty);
        let policy = |(name, options): (&str, &TaskOptions)| {
            let policy = options.patched(of(name)).and_then(|options| options.patched(of("*")));
            let policy = policy.and_then(|options| Policy::new(options, app));
            Ok((name.to_owned(), policy.map_err(|why| format!("the task {name:?}: {why}"))?))
        };
        let registered = tasks.map(policy).collect::<Result<_, String>>()?;
        Ok(Self { registered, other: Policy::new(TaskOptions::default(), app)? })
    }

    /// What counts for tasks of a name.
    pub(super) fn of(&self, task: &str) -> &Policy {
        self.registered.get(task).unwrap_or(&self.other)
    }

    pub(super) fn has(&self, task: &str) -> bool {
        self.registered.contains_key(task)
    }

    /// The names, sorted, and what counts for each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Policy)> {
        self.registered.iter()
    }
}

impl Defaults for Policies {
    fn of_task(&self, name: &str) -> Map<String, Value> {
        let Some(policy) = self.registered.get(name) else { return Map::new() };
        let options = policy.options();
        let all = [
            ("queue", options.queue.clone().map(Value::from)),
            ("priority", options.priority.map(Value::from)),
            ("expires", options.expires.map(|expires| expires.as_secs_f64().into())),
            ("ignore_result", policy.ignores_result().then_some(true.into())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn policy(options: TaskOptions, app: &Value) -> Policy {
        let app = AppConfig::parse(&app.to_string()).unwrap();
        Policies::new([("t", &options)].into_iter(), &app).unwrap().of("t").clone()
    }

    #[test]
    fn the_options_of_a_task_go_before_the_settings_and_annotations_before_both() {
        let app = json!({
            "task_soft_time_limit": 5, "task_time_limit": 10, "task_default_rate_limit": "1/m", "task_acks_late": false,
            "task_ignore_result": true, "task_acks_on_failure_or_timeout": false, "task_reject_on_worker_lost": false,
        });
        let of_app = policy(TaskOptions::default(), &app);
        assert_eq!((of_app.time_limits(), of_app.rate().unwrap().text.as_str()), ((Some(5.0), Some(10.0)), "1/m"));
        assert!(!of_app.acks_late() && of_app.ignores_result() && !of_app.keeps_failed() && !of_app.fails_if_lost());
        let own = TaskOptions {
            soft_time_limit: Some(Duration::from_secs(1)),
            rate_limit: Some("0".to_owned()),
            acks_late: Some(true),
            acks_on_failure: Some(true),
            ..Default::default()
        };
        let own_policy = policy(own.clone(), &app);
        assert_eq!((own_policy.time_limits(), own_policy.rate()), ((Some(1.0), Some(10.0)), None));
        assert!(!own_policy.keeps_failed() && own_policy.returns_late() && own_policy.fails_if_lost());
        let mut annotated = app.clone();
        annotated["task_annotations"] = json!({"t": {"rate_limit": "2/s", "time_limit": 7}, "*": {"time_limit": 8}});
        let annotated = policy(own, &annotated);
        assert_eq!((annotated.time_limits().1, annotated.rate().unwrap().text.as_str()), (Some(8.0), "2/s"));
        assert_eq!(annotated.options().attributes()["acks_on_timeout"], json!(false), "as it counts");
        let never =
            policy(TaskOptions::default(), &json!({"task_default_rate_limit": 1, "worker_disable_rate_limits": true}));
        assert_eq!(never.rate(), None);
    }

    #[test]
    fn options_of_no_use_are_told_with_their_task() {
        let app = AppConfig::default();
        let bad = TaskOptions { rate_limit: Some("often".to_owned()), ..Default::default() };
        let error = Policies::new([("t", &bad)].into_iter(), &app).unwrap_err();
        assert_eq!(error, "the task \"t\": \"often\" is no rate; use 10/s, 10/m or 10/h");
    }
}
