//! Tests that look at the whole process, and so run each in a process of its own.

#[path = "../testkit/mod.rs"]
mod testkit;

mod leaks;
mod miner_descriptors;
mod polled_idle;
mod stress;
mod transport_descriptors;
mod transport_memory;
mod virtual_batch;
mod virtual_time;

/// Runs a test, by its name, in a process of its own: the threads with which the harness runs others come and go, too.
fn alone(name: &str, test: fn()) {
    const MARK: &str = "PHALANX_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return test();
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    // On one thread the harness runs it on the main one.
    let output = command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(MARK, "1").output().unwrap();
    let reported = String::from_utf8_lossy(&output.stdout);
    let ran = output.status.success() && reported.contains("1 passed");
    assert!(ran, "{name}: {reported}{}", String::from_utf8_lossy(&output.stderr));
    println!("{reported}");
}
