//! Redis and Celery: connections, messaging, our client and worker beside real ones, dispatch over Redis.

#[path = "../testkit/mod.rs"]
mod testkit;

#[path = "../../examples/celery_worker.rs"]
mod example;
#[path = "../../examples/redis.rs"]
mod redis_example;

mod celery_beat;
mod celery_canvas;
mod celery_canvas_kill;
mod celery_client;
mod celery_control;
mod celery_messages;
mod celery_monitoring;
mod celery_options;
mod celery_scripts;
mod celery_settings;
mod celery_together;
mod celery_values;
mod celery_worker;
mod celery_worker_faults;
mod celery_worker_kill;
mod dropping;
mod faults_under_load;
mod load;
mod redis_connection;
mod redis_messaging;
mod remote;
mod remote_maintenance;
mod trust;

/// The process of `testkit::celery::worker_process`.
#[test]
#[ignore = "other tests start it as a process of its own"]
fn worker_itself() {
    example::run(testkit::celery::worker_words(), |_| example::registry()).unwrap();
}
