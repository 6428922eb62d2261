//! What this machine is, in the shape that the Python executor reports it (`V0MachineSpecsRequest`).
//!
//! Owner of the thread `exec-specs`: [`SpecsThread`], in `role`. Blocks in: `nvidia-smi`, where there is one. Kick: the
//! cancel signal of its owner. Ends: by itself, once all is described. It begins with the executor, so that no job
//! waits for it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use serde_json::{Value, json};

use crate::base::shutdown::Shutdown;
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, spawn};
use crate::proc::tool;
use crate::protocol::JsonMap;

/// How long `nvidia-smi` may take; it can hang on a broken driver.
const GPU_TIME: Duration = Duration::from_secs(5);

/// Fields of a GPU: the name in the specs, and what `nvidia-smi` is asked for.
const GPU_FIELDS: [(&str, &str); 7] = [
    ("name", "name"),
    ("driver", "driver_version"),
    ("capacity", "memory.total"),
    ("cuda", "compute_cap"),
    ("power_limit", "power.limit"),
    ("graphics_speed", "clocks.gr"),
    ("memory_speed", "clocks.mem"),
];

/// Describes the machine beside everything else. Dropping it cancels that, and joins the thread.
pub(super) struct SpecsThread {
    cancel: Shutdown,
    thread: Thread<()>,
}

impl SpecsThread {
    /// Begins; the specs come once.
    pub(super) fn start() -> (Self, Receiver<JsonMap>) {
        let (report, specs) = bounded(1);
        let cancel = Shutdown::new();
        let (kicked, token) = (cancel.clone(), cancel.clone());
        let thread = spawn("exec-specs", Kick::new("cancel signal", move || kicked.cancel()), move || {
            // There is room for them; after the job nobody wants them.
            drop(report.try_send(machine_specs(&token)));
        });
        (Self { cancel, thread }, specs)
    }

    /// Cancels and joins.
    pub(super) fn stop_in(self, step: &mut Step) {
        self.cancel.cancel();
        step.join(self.thread);
    }
}

/// Describes GPUs, processor, memory (KiB), disk (KiB) and operating system.
///
/// Never fails: a part that cannot be read has its reason under `PART_scrape_error`. Blocks for at most five seconds,
/// in `nvidia-smi` where there is one; `token` ends that.
fn machine_specs(token: &Shutdown) -> JsonMap {
    let mut specs = JsonMap::new();
    let mut put = |part: &str, empty: Value, found: Result<Value, String>| match found {
        Ok(value) => {
            specs.insert(part.to_owned(), value);
        }
        Err(error) => {
            specs.insert(part.to_owned(), empty);
            specs.insert(format!("{part}_scrape_error"), error.into());
        }
    };
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
    put("gpu", json!({"count": 0, "details": []}), gpus(token));
    put("cpu", json!({"count": 0, "model": "", "clocks": []}), read("/proc/cpuinfo").map(|text| cpu(&text)));
    put("ram", json!({}), read("/proc/meminfo").and_then(|text| ram(&text)));
    put("hard_disk", json!({}), hard_disk());
    put("os", "".into(), read("/etc/os-release").and_then(|text| os(&text)));
    specs
}

fn gpus(token: &Shutdown) -> Result<Value, String> {
    let query = format!("--query-gpu={}", GPU_FIELDS.map(|(_, field)| field).join(","));
    let mut command = Command::new("nvidia-smi");
    command.args([query.as_str(), "--format=csv,noheader,nounits"]);
    tool::output(command, "list the GPUs", token, Instant::now() + GPU_TIME)
        .map(|text| gpu_table(&text))
        .map_err(|error| error.to_string())
}

fn gpu_table(text: &str) -> Value {
    let row = |line: &str| {
        let fields = GPU_FIELDS.iter().zip(line.split(','));
        fields.map(|((name, _), value)| ((*name).to_owned(), value.trim().into())).collect::<JsonMap>()
    };
    let details: Vec<Value> =
        text.lines().filter(|line| !line.trim().is_empty()).map(|line| row(line).into()).collect();
    json!({"count": details.len(), "details": details})
}

fn cpu(text: &str) -> Value {
    let values = |key: &str| {
        let key = key.to_owned();
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.filter(move |(name, _)| name.trim() == key).map(|(_, value)| value.trim()).collect::<Vec<_>>()
    };
    let clocks: Vec<f64> = values("cpu MHz").iter().filter_map(|value| value.parse().ok()).collect();
    let model = values("model name").first().copied().unwrap_or("");
    json!({"count": values("processor").len(), "model": model, "clocks": clocks})
}

fn ram(text: &str) -> Result<Value, String> {
    let kib = |name: &str| -> Result<u64, String> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|rest| rest.trim().parse().ok());
        number.ok_or_else(|| format!("/proc/meminfo has no {name}"))
    };
    let (total, free) = (kib("MemTotal")?, kib("MemFree")?);
    let used = total.saturating_sub(free);
    Ok(json!({"available": kib("MemAvailable")?, "free": free, "total": total, "used": used}))
}

fn hard_disk() -> Result<Value, String> {
    let disk = rustix::fs::statvfs("/").map_err(|error| format!("cannot look at the disk: {error}"))?;
    let kib = |blocks: u64| blocks.saturating_mul(disk.f_frsize) / 1024;
    let used = disk.f_blocks.saturating_sub(disk.f_bfree);
    Ok(json!({"total": kib(disk.f_blocks), "used": kib(used), "free": kib(disk.f_bavail)}))
}

fn os(text: &str) -> Result<Value, String> {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map(|name| name.trim_matches(['"', '\'']).into()).ok_or_else(|| "/etc/os-release has no PRETTY_NAME".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_that_of_the_python_executor() {
        let specs = machine_specs(&Shutdown::new());
        let keys: Vec<&str> = specs.keys().map(String::as_str).filter(|key| !key.ends_with("_scrape_error")).collect();
        assert_eq!(keys, ["gpu", "cpu", "ram", "hard_disk", "os"]);
        assert!(specs["cpu"]["count"].as_u64().unwrap() > 0, "{specs:?}");
        assert!(specs["ram"]["total"].as_u64().unwrap() > specs["ram"]["used"].as_u64().unwrap());
        assert!(specs["hard_disk"]["total"].as_u64().unwrap() > 0);
        assert!(!specs["os"].as_str().unwrap().is_empty());
        assert_eq!(specs["gpu"]["details"].as_array().unwrap().len() as u64, specs["gpu"]["count"].as_u64().unwrap());
    }

    #[test]
    fn known_texts_are_read() {
        assert_eq!(
            gpu_table("NVIDIA RTX A6000, 550.54, 49140, 8.6, 300.00, 210, 405\n\n"),
            json!({"count": 1, "details": [{"name": "NVIDIA RTX A6000", "driver": "550.54", "capacity": "49140",
                "cuda": "8.6", "power_limit": "300.00", "graphics_speed": "210", "memory_speed": "405"}]})
        );
        let processor = |n, mhz| format!("processor\t: {n}\nmodel name\t: AMD EPYC\ncpu MHz\t\t: {mhz}\n\n");
        let text = processor(0, "2596.5") + &processor(1, "2000.0");
        assert_eq!(cpu(&text), json!({"count": 2, "model": "AMD EPYC", "clocks": [2596.5, 2000.0]}));
        let text = "MemTotal:       24682416 kB\nMemFree:        23147756 kB\nMemAvailable:   23723908 kB\n";
        let ram_is = json!({"available": 23723908, "free": 23147756, "total": 24682416, "used": 1534660});
        assert_eq!(ram(text).unwrap(), ram_is);
        assert!(ram("MemTotal: many").unwrap_err().contains("MemTotal"));
        assert_eq!(
            os("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n").unwrap(),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert!(os("").is_err());
    }

    #[test]
    fn a_cancelled_token_still_gives_specs() {
        let token = Shutdown::new();
        token.cancel();
        assert!(machine_specs(&token).contains_key("cpu"));
    }
}
