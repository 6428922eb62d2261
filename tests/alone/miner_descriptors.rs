//! An executor's run costs no descriptor for good. In a process of its own, because other tests' files would be
//! counted.

#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::time::Duration;

use crate::alone;
use phalanx::base::leaks::Before;
use phalanx::base::shutdown::Shutdown;
use phalanx::miner::executor_manager::{
    ExecutorBackend, ExecutorError, ExecutorExit, ExecutorSpec, Owner, ProcessBackend,
};
use phalanx::protocol::ExecutorClass;

#[test]
fn runs_of_executors_keep_no_descriptor() {
    alone("miner_descriptors::runs_of_executors_keep_no_descriptor", descriptors_are_given_back);
}

fn descriptors_are_given_back() {
    let spec = ExecutorSpec {
        run: "run".to_owned(),
        owner: Owner { miner: "5M".to_owned(), instance: uuid::Uuid::new_v4().to_string(), epoch: 1 },
        job_uuid: "00000000-0000-0000-0000-000000000001".to_owned(),
        token: uuid::Uuid::new_v4().to_string(),
        miner_address: "ws://127.0.0.1:1".to_owned(),
        class: ExecutorClass::AlwaysOnTest,
        startup_time_limit: Duration::from_secs(60),
    };
    let run = |program: &str| {
        let backend = ProcessBackend {
            program: PathBuf::from(program),
            phalanx: PathBuf::from(env!("CARGO_BIN_EXE_phalanx")),
            arguments: Some(Vec::new()),
            end_grace: Duration::from_secs(3600),
            ..ProcessBackend::new("process").unwrap()
        };
        let end = backend.run(&spec, &Shutdown::new());
        backend.clean(&spec, true, &Shutdown::new()).unwrap();
        end
    };
    // What the first run opens for good, if anything.
    run("/bin/true").unwrap();
    let before = Before::of_process();
    for _ in 0..20 {
        assert_eq!(run("/bin/true").unwrap(), ExecutorExit::Code(0));
        assert_eq!(run("/bin/false").unwrap(), ExecutorExit::Code(1));
        assert!(matches!(run("/nonexistent/executor").unwrap_err(), ExecutorError::Start { .. }));
    }
    before.assert_none();
}
