//! A real browser without a screen, over its pipe of the DevTools protocol: messages that end in a zero byte.
//!
//! Owner: the test, through [`Browser`]. One thread, `t-browser`, reads what it says; it ends with the browser, whose
//! pipe is closed and which is killed when this is dropped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use base64::Engine as _;
use crossbeam_channel::{Receiver, bounded};
use phalanx::base::thread::{Kick, Thread, spawn};
use serde_json::{Value, json};

use super::wait::LONG;

/// What the system calls it.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// One page of a browser.
pub struct Browser {
    child: Child,
    say: Option<ChildStdin>,
    said: Receiver<Value>,
    session: Value,
    next: u64,
    /// What the browser complained of since the page was opened: scripts, policies, requests.
    pub complaints: Vec<String>,
    _reader: Thread<()>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None` where there is no browser, which `PHALANX_TEST_REQUIRE_ALL` does not let pass.
    pub fn start() -> Option<Self> {
        let found = |name: &&&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
        let Some(name) = NAMES.iter().find(found) else {
            assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none(), "no browser is installed: chromium");
            println!("SKIPPED: no browser is installed: chromium");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let script = format!(
            "exec {name} --headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage \
             --disable-background-networking --user-data-dir=\"$0\" --remote-debugging-pipe about:blank \
             3<&0 4>&1 </dev/null >/dev/null 2>&1"
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(profile.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.env("TMPDIR", profile.path()).env("HOME", profile.path()).spawn().unwrap();
        let (say, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (heard, said) = bounded(10_000);
        let reader = spawn("t-browser", Kick::dropped("the browser"), move || {
            for message in BufReader::new(stdout).split(0) {
                let Ok(message) = message else { return };
                // A test that has ended wants to hear no more.
                if heard.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let complaints = Vec::new();
        let (say, session) = (Some(say), Value::Null);
        let mut browser = Self { child, say, said, session, next: 0, complaints, _reader: reader, _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Asks the browser for something, and waits for its answer.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        let say = self.say.as_mut().unwrap();
        say.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let heard = self.hear();
            if heard["id"] == self.next {
                assert!(heard["error"].is_null(), "{method}: {heard}");
                return heard["result"].clone();
            }
        }
    }

    fn hear(&mut self) -> Value {
        let heard = self.said.recv_timeout(LONG).expect("the browser says something");
        match heard["method"].as_str() {
            Some("Log.entryAdded") => self.complaints.push(heard["params"]["entry"]["text"].to_string()),
            Some("Runtime.exceptionThrown") => self.complaints.push(heard["params"].to_string()),
            _ => {}
        }
        heard
    }

    /// Makes the window so large; a narrow one is a phone's.
    pub fn resize(&mut self, width: u32, height: u32) {
        let mobile = width < 600;
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Whether scripts run.
    pub fn scripts(&mut self, run: bool) {
        self.call("Emulation.setScriptExecutionDisabled", json!({"value": !run}));
    }

    /// Opens an address, and waits until all of it is there.
    pub fn open(&mut self, url: &str) {
        self.complaints.clear();
        let opened = self.call("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        while self.hear()["method"] != "Page.loadEventFired" {}
    }

    /// The value of an expression on the page; promises are waited for.
    pub fn eval(&mut self, expression: &str) -> Value {
        let ask = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", ask);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// A picture of what the window shows, or of the page as a whole.
    pub fn picture(&mut self, whole: bool) -> Vec<u8> {
        let ask = json!({"format": "png", "captureBeyondViewport": whole});
        let picture = self.call("Page.captureScreenshot", ask)["data"].as_str().unwrap().to_owned();
        base64::engine::general_purpose::STANDARD.decode(picture).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends by itself without its pipe; the kill is for one that does not.
        drop(self.say.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
