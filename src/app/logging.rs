//! Logs to stderr: `RUST_LOG` says what, `--log-format` how.

use std::io::Write as _;

use clap::ValueEnum;
use env_logger::{Builder, Env};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line: `time`, `level`, `target`, `thread`, `message`.
    Json,
}

/// Installs the logger of the process; warnings and errors only, unless `RUST_LOG` says otherwise.
pub fn init(format: LogFormat, default_filter: &str) {
    let mut builder = Builder::from_env(Env::default().default_filter_or(default_filter));
    builder.format(move |out, record| {
        let time = out.timestamp_millis();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("?");
        match format {
            LogFormat::Text => {
                writeln!(out, "{time} {:<5} [{thread}] {}", record.level(), record.args())
            }
            LogFormat::Json => {
                let line = serde_json::json!({
                    "time": time.to_string(),
                    "level": record.level().as_str(),
                    "target": record.target(),
                    "thread": thread,
                    "message": record.args().to_string(),
                });
                writeln!(out, "{line}")
            }
        }
    });
    // A second call in one process (tests) keeps the first logger.
    let _ = builder.try_init();
}
