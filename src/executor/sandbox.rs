//! What a job may do on its host: the rights and limits of its container, and the disk that it may fill. Pure.
//!
//! A miner decides it for each class by its settings and hands it to its executors as JSON (`PHALANX_SANDBOX`). The
//! process runner confines nothing; of all this only the disk quota counts there.

use serde::{Deserialize, Serialize};

/// Processes and threads of a job: an interpreter with a pool of workers for each of many cores has some hundreds, and
/// a fork bomb of this size leaves the host's own limit of 32,768 alone.
const PIDS: u64 = 512;

/// Open files of one process: loaders of large data sets keep thousands open. An engine whose own hard limit is lower
/// refuses the container; engines have half a million or more as they are installed.
const OPEN_FILES: u64 = 16_384;

/// Files and folders of a job: as many as a large set of small inputs has, and few enough to be counted in seconds.
pub const ENTRIES: u64 = 1_000_000;

/// Of the host's memory an eighth is left to the system, the miner and the executors.
const MEMORY_EIGHTHS: u64 = 7;

/// No share of memory is smaller: an interpreter needs as much. With more slots than that, memory is overcommitted.
const MEMORY_LEAST: u64 = 256 << 20;

/// Of the free disk a fifth is left to images, logs and databases.
const DISK_FIFTHS: u64 = 4;

/// No share of the disk is smaller.
const DISK_LEAST: u64 = 1 << 30;

/// Bytes of `/tmp` where the root of the file system is read-only; they count as memory.
const TMP_BYTES: u64 = 256 << 20;

/// The capabilities that ordinary images use to start as root and become another user: those that Docker gives, without
/// raw sockets, device nodes, the audit log, `chroot`, and giving capabilities to files and to itself.
const CAPABILITIES: [&str; 8] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"];

/// The user of the strict profile: `nobody`.
const STRICT_USER: &str = "65534:65534";

/// What a sandbox begins with; settings go from there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Runs what the Python executor runs: the image's user, its root writable, the capabilities of ordinary images
    #[default]
    Default,
    /// No capability, user 65534, a read-only root with a small /tmp
    Strict,
}

impl Profile {
    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Default => "default",
            Profile::Strict => "strict",
        }
    }
}

/// What a machine has, and for how many jobs at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: u32,
    /// Free bytes where jobs have their folders; 0 if that cannot be seen: then each job may have the least.
    pub disk_bytes: u64,
    /// Jobs that may run at a time.
    pub slots: u32,
}

/// What a job may do. `None` stands for no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// What it began with.
    pub profile: Profile,
    /// Bytes of memory; there is no swap beyond it.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes of one file.
    pub file_bytes: Option<u64>,
    /// Open files of one process.
    pub open_files: Option<u64>,
    /// Bytes on disk of the job's folders and of what its container has changed in its image.
    pub disk_bytes: Option<u64>,
    /// Files and folders of the same.
    pub disk_entries: Option<u64>,
    /// Whether the root of the container's file system is read-only; `/tmp` is in memory then.
    pub read_only_root: bool,
    /// The user, as `UID:GID` or a name of the image; `None` is the image's own.
    pub user: Option<String>,
    /// The capabilities; all others are dropped.
    pub capabilities: Vec<String>,
    /// The engine's runtime, as `runsc` or `nvidia`; `None` is the engine's own choice.
    pub runtime: Option<String>,
    /// The container network.
    pub network: String,
    /// Whether a job that asks for GPUs gets them.
    pub gpus: bool,
}

impl Default for Sandbox {
    /// For an executor whose miner says nothing: the default profile without shares of a machine.
    fn default() -> Self {
        Self {
            profile: Profile::Default,
            memory_bytes: None,
            cpu_millis: None,
            pids: Some(PIDS),
            file_bytes: None,
            open_files: Some(OPEN_FILES),
            disk_bytes: None,
            disk_entries: Some(ENTRIES),
            read_only_root: false,
            user: None,
            capabilities: CAPABILITIES.map(str::to_owned).into(),
            runtime: None,
            network: "none".to_owned(),
            gpus: true,
        }
    }
}

impl Sandbox {
    /// A profile with an equal share of the host for each job. A job has at least one processor where there is one:
    /// jobs that want more than there is have equal weights.
    pub fn of(profile: Profile, host: Host) -> Self {
        let slots = u64::from(host.slots.max(1));
        let disk = (host.disk_bytes / 5 * DISK_FIFTHS / slots).max(DISK_LEAST);
        let shared = Self {
            profile,
            memory_bytes: Some((host.memory_bytes / 8 * MEMORY_EIGHTHS / slots).max(MEMORY_LEAST)),
            cpu_millis: Some((u64::from(host.cpus) * 1000 / slots).max(1000)),
            file_bytes: Some(disk),
            disk_bytes: Some(disk),
            ..Self::default()
        };
        match profile {
            Profile::Default => shared,
            Profile::Strict => {
                Self { read_only_root: true, user: Some(STRICT_USER.to_owned()), capabilities: Vec::new(), ..shared }
            }
        }
    }

    /// What a miner has handed over.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub fn parse(json: &str) -> Result<Self, String> {
        let sandbox: Self = serde_json::from_str(json).map_err(|e| format!("not a sandbox in JSON: {e}"))?;
        sandbox.problem().map_or(Ok(sandbox.clone()), Err)
    }

    /// As [`Sandbox::parse`] reads it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a plain struct without maps becomes JSON")
    }

    /// What no engine would take, or what would be read as another option.
    pub fn problem(&self) -> Option<String> {
        let name = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
        };
        if self.memory_bytes.is_some_and(|bytes| bytes < 6 << 20) {
            return Some("memory is less than the 6 MiB that a container needs".to_owned());
        }
        for (key, value) in [
            ("cpus", self.cpu_millis),
            ("pids", self.pids),
            ("file-size", self.file_bytes),
            ("open-files", self.open_files),
            ("disk", self.disk_bytes),
            ("disk-entries", self.disk_entries),
        ] {
            if value == Some(0) {
                return Some(format!("{key} is 0; give a limit, or \"none\""));
            }
        }
        if let Some(user) = self.user.as_deref().filter(|user| !user.splitn(2, ':').all(name)) {
            return Some(format!("user {user:?} is not a user, as 1000:1000"));
        }
        let capability = |text: &String| !text.is_empty() && text.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        if let Some(bad) = self.capabilities.iter().find(|text| !capability(text)) {
            return Some(format!("capability {bad:?} is not one, as \"CHOWN\""));
        }
        if let Some(runtime) = self.runtime.as_deref().filter(|runtime| !name(runtime)) {
            return Some(format!("runtime {runtime:?} is not the name of one, as runsc"));
        }
        (!name(&self.network)).then(|| format!("network {:?} is not the name of one, as none or bridge", self.network))
    }

    /// The arguments of `docker run` (and of podman's) for all of it but GPUs and the network, which depend on the
    /// job.
    pub fn arguments(&self) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
        option("--security-opt", "no-new-privileges".to_owned());
        option("--cap-drop", "ALL".to_owned());
        self.capabilities.iter().for_each(|capability| option("--cap-add", capability.clone()));
        if let Some(pids) = self.pids {
            option("--pids-limit", pids.to_string());
        }
        if let Some(bytes) = self.memory_bytes {
            // The same limit with swap, so that there is none.
            option("--memory", bytes.to_string());
            option("--memory-swap", bytes.to_string());
        }
        if let Some(millis) = self.cpu_millis {
            option("--cpus", thousandths(millis));
        }
        // A core file would be written wherever the host's pattern says.
        for (name, limit) in [("core", Some(0)), ("fsize", self.file_bytes), ("nofile", self.open_files)] {
            if let Some(limit) = limit {
                option("--ulimit", format!("{name}={limit}:{limit}"));
            }
        }
        if let Some(user) = &self.user {
            option("--user", user.clone());
        }
        if let Some(runtime) = &self.runtime {
            option("--runtime", runtime.clone());
        }
        if self.read_only_root {
            option("--tmpfs", format!("/tmp:rw,nosuid,nodev,size={TMP_BYTES},mode=1777"));
            args.push("--read-only".to_owned());
        }
        args
    }
}

/// Thousandths as a decimal number.
fn thousandths(millis: u64) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

/// A number of bytes for people: exact, if it is whole in a larger unit, else with one digit.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} bytes"),
    }
}

/// One line for logs and status.
impl Sandbox {
    /// What of it holds for a job that is a plain process.
    pub fn of_process(&self) -> String {
        let disk = self.disk_bytes.map_or_else(|| "without limit".to_owned(), bytes);
        let entries = self.disk_entries.map_or_else(|| "without limit".to_owned(), |entries| entries.to_string());
        format!("a plain process, of which nothing but its disk is bounded: disk {disk}, entries {entries}")
    }
}

impl std::fmt::Display for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limit = |what: &str, value: Option<String>| {
            value.map_or_else(|| format!("{what} without limit"), |value| format!("{what} {value}"))
        };
        let count = |value: Option<u64>| value.map(|value| value.to_string());
        let parts = [
            format!("profile {}", self.profile.name()),
            limit("memory", self.memory_bytes.map(bytes)),
            limit("processors", self.cpu_millis.map(thousandths)),
            limit("processes", count(self.pids)),
            limit("disk", self.disk_bytes.map(bytes)),
            limit("entries", count(self.disk_entries)),
            limit("file", self.file_bytes.map(bytes)),
            limit("open files", count(self.open_files)),
            format!("root {}", if self.read_only_root { "read-only" } else { "writable" }),
            format!("user {}", self.user.as_deref().unwrap_or("of the image")),
            match self.capabilities.is_empty() {
                true => "no capability".to_owned(),
                false => format!("capabilities {}", self.capabilities.join(" ")),
            },
            format!("runtime {}", self.runtime.as_deref().unwrap_or("of the engine")),
            format!("network {}", self.network),
            (if self.gpus { "GPUs" } else { "no GPU" }).to_owned(),
        ];
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { memory_bytes: 16 << 30, cpus: 8, disk_bytes: 100 << 30, slots: 4 };

    fn joined(sandbox: &Sandbox) -> String {
        sandbox.arguments().join(" ")
    }

    #[test]
    fn jobs_have_equal_shares_of_the_host_and_never_too_little() {
        let of = |host| Sandbox::of(Profile::Default, host);
        let shares = |host| {
            let it = of(host);
            (it.memory_bytes.unwrap() >> 20, it.cpu_millis.unwrap(), it.disk_bytes.unwrap() >> 30)
        };
        assert_eq!(shares(HOST), (3584, 2000, 20));
        assert_eq!(shares(Host { slots: 1, ..HOST }), (14336, 8000, 80));
        assert_eq!(shares(Host { slots: 0, ..HOST }), (14336, 8000, 80));
        assert_eq!(shares(Host { slots: 1000, ..HOST }), (256, 1000, 1));
        assert_eq!(of(HOST).file_bytes, of(HOST).disk_bytes);
    }

    #[test]
    fn the_default_profile_has_what_ordinary_images_need_and_no_more() {
        let args = joined(&Sandbox::of(Profile::Default, HOST));
        for wanted in [
            "--security-opt no-new-privileges",
            "--cap-drop ALL",
            "--cap-add SETUID",
            "--pids-limit 512",
            "--memory 3758096384 --memory-swap 3758096384",
            "--cpus 2.000",
            "--ulimit core=0:0",
            "--ulimit fsize=21474836480:21474836480",
            "--ulimit nofile=16384:16384",
        ] {
            assert!(args.contains(wanted), "{wanted} is not in {args}");
        }
        for unwanted in ["NET_RAW", "MKNOD", "AUDIT_WRITE", "SYS_CHROOT", "SETPCAP", "SETFCAP", "--user", "read-only"] {
            assert!(!args.contains(unwanted), "{unwanted} is in {args}");
        }
        // Without a miner's settings there are no shares, and still no more rights.
        let alone = joined(&Sandbox::default());
        assert!(alone.contains("--cap-drop ALL") && alone.contains("--pids-limit 512") && !alone.contains("--memory"));
    }

    #[test]
    fn the_strict_profile_has_no_capability_no_root_and_no_writable_image() {
        let strict = Sandbox::of(Profile::Strict, HOST);
        let args = joined(&strict);
        assert!(!args.contains("--cap-add"), "{args}");
        for wanted in ["--cap-drop ALL", "--user 65534:65534", "--read-only", "--tmpfs /tmp:rw,nosuid,nodev"] {
            assert!(args.contains(wanted), "{wanted} is not in {args}");
        }
        let shown = strict.to_string();
        for wanted in ["profile strict", "no capability", "root read-only", "user 65534:65534", "network none"] {
            assert!(shown.contains(wanted), "{wanted} is not in {shown}");
        }
    }

    #[test]
    fn it_is_handed_over_as_json_and_checked() {
        let all = Sandbox {
            runtime: Some("runsc".into()),
            network: "bridge".into(),
            memory_bytes: None,
            ..Sandbox::of(Profile::Strict, HOST)
        };
        assert_eq!(Sandbox::parse(&all.to_json()).unwrap(), all);
        assert!(joined(&all).contains("--runtime runsc"));
        let bad = |change: &dyn Fn(&mut Sandbox)| {
            let mut sandbox = Sandbox::default();
            change(&mut sandbox);
            Sandbox::parse(&sandbox.to_json()).unwrap_err()
        };
        for (problem, says) in [
            (bad(&|s| s.memory_bytes = Some(1)), "6 MiB"),
            (bad(&|s| s.pids = Some(0)), "pids is 0"),
            (bad(&|s| s.user = Some("--privileged".into())), "user \"--privileged\""),
            (bad(&|s| s.user = Some("1:2:3".into())), "user \"1:2:3\""),
            (bad(&|s| s.capabilities = vec!["sys_admin".into()]), "capability \"sys_admin\""),
            (bad(&|s| s.runtime = Some("a b".into())), "runtime \"a b\""),
            (bad(&|s| s.network = "container:x".into()), "network \"container:x\""),
        ] {
            assert!(problem.contains(says), "{problem}");
        }
        assert!(Sandbox::parse("{\"pids\":1}").unwrap_err().contains("missing field"));
        assert!(Sandbox::parse("{\"x\":1}").unwrap_err().contains("unknown field"));
    }

    #[test]
    fn bytes_are_shown_in_their_largest_unit() {
        for (number, text) in
            [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536 << 20, "1.5 GiB"), (3 << 20, "3 MiB")]
        {
            assert_eq!(bytes(number), text);
        }
    }
}
