//! A client in a process of its own.

use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A running client; killed when it is dropped.
pub struct Client {
    child: Child,
    folder: TempDir,
}

impl Client {
    /// Starts a command. `{url}`, `{signer}` and `{dir}` in it stand for the facilitator's URL, the address of who
    /// signs the jobs, and an empty folder.
    pub fn start(command: &[String], url: &str, signer: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| format!("folder: {e}"))?;
        let dir = folder.path().join("state");
        let fill = |part: &String| {
            part.replace("{url}", url).replace("{signer}", signer).replace("{dir}", &dir.display().to_string())
        };
        let (program, args) = command.split_first().ok_or("no command is given")?;
        let stderr = File::create(folder.path().join("stderr")).map_err(|e| format!("stderr: {e}"))?;
        let child = Command::new(fill(program))
            .args(args.iter().map(fill))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|e| format!("{program}: {e}"))?;
        Ok(Self { child, folder })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end.
    pub fn terminate(&self) -> Result<(), String> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).map_err(|e| format!("SIGTERM: {e}"))
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.ended().is_none() {
            if Instant::now() > deadline {
                return Err("it did not end 10 s after SIGTERM".to_owned());
            }
            poll(&mut [], PollTimeout::from(10_u8)).map_err(|e| format!("poll: {e}"))?;
        }
        Ok(())
    }

    /// The end of what it wrote to stderr.
    pub fn last_words(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("stderr")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended; then both are done already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
