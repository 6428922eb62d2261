//! What a miner's settings say of the sandboxes of its jobs: the table `[miner.sandbox]` for all, and in it one for a
//! class, as `[miner.sandbox."always_on.gpu-24gb"]`.

use serde_json::{Map, Value};

use super::hint::hint;
use crate::base::size::byte_size;
use crate::executor::sandbox::{Host, Profile, Sandbox};
use crate::protocol::ExecutorClass;

/// What a table may say.
const KEYS: [&str; 14] = [
    "profile",
    "memory",
    "cpus",
    "pids",
    "disk",
    "disk-entries",
    "file-size",
    "open-files",
    "read-only-root",
    "user",
    "capabilities",
    "runtime",
    "network",
    "gpus",
];

/// This machine, as `slots` jobs share it; `folder` is on the disk of their folders.
pub fn host(slots: u32, folder: &std::path::Path) -> std::io::Result<Host> {
    let memory = rustix::system::sysinfo();
    let disk = rustix::fs::statvfs(folder)?;
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    Ok(Host {
        memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
        cpus,
        disk_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        slots,
    })
}

/// The sandbox of each class of executors. `profile` comes before what the table says; `table` is a JSON object with
/// the keys of the settings file.
///
/// # Errors
/// One line that names the key and what would be right.
pub fn sandboxes(
    profile: Option<Profile>,
    table: Option<&str>,
    host: Host,
    classes: &[ExecutorClass],
) -> Result<Vec<(ExecutorClass, Sandbox)>, String> {
    let table: Map<String, Value> = match table {
        Some(text) => serde_json::from_str(text).map_err(|e| format!("sandbox settings: not a JSON object: {e}"))?,
        None => Map::new(),
    };
    let mut all = Vec::new();
    let mut of_class = Vec::new();
    for (key, value) in &table {
        let known = key.replace('_', "-");
        match (KEYS.contains(&known.as_str()), key.parse::<ExecutorClass>(), value) {
            (true, ..) => all.push((known, value)),
            (false, Ok(class), Value::Object(inner)) if classes.contains(&class) => of_class.push((class, inner)),
            (false, Ok(_), Value::Object(_)) => {
                return Err(format!("sandbox {key:?}: this miner has no executors of that class"));
            }
            (false, Ok(_), _) => return Err(format!("sandbox {key:?} is {value}; it should be a table")),
            (false, Err(_), _) => {
                let hint = hint(&known, &KEYS);
                let classes: Vec<_> = classes.iter().map(|class| format!("\"{}\"", class.as_str())).collect();
                let right = format!(
                    "it has limits, and a table for each class of this miner's executors: {}",
                    classes.join(", ")
                );
                return Err(format!("sandbox: unknown key {key:?}{hint}; {right}"));
            }
        }
    }
    let mut sandboxes = Vec::new();
    for class in classes {
        let mut own = Vec::new();
        for (_, inner) in of_class.iter().filter(|(of, _)| of == class) {
            for (key, value) in inner.iter() {
                let known = key.replace('_', "-");
                if !KEYS.contains(&known.as_str()) {
                    let hint = hint(&known, &KEYS);
                    return Err(format!("sandbox {:?}: unknown key {key:?}{hint}", class.as_str()));
                }
                own.push((known, value));
            }
        }
        let at = |key: &str, problem: String| match own.iter().any(|(of, _)| of == key) {
            true => format!("[miner.sandbox.\"{}\"] {key} {problem}", class.as_str()),
            false => format!("[miner.sandbox] {key} {problem}"),
        };
        let said = own.iter().chain(&all).find(|(key, _)| key == "profile").map(|(_, value)| *value);
        let profile = match (profile, said) {
            (Some(profile), _) => profile,
            (None, Some(value)) => read_profile(value).map_err(|problem| at("profile", problem))?,
            (None, None) => Profile::Default,
        };
        let mut sandbox = Sandbox { gpus: class.has_gpu(), ..Sandbox::of(profile, host) };
        for (key, value) in all.iter().chain(&own) {
            set(&mut sandbox, key, value).map_err(|problem| at(key, problem))?;
        }
        if let Some(problem) = sandbox.problem() {
            return Err(format!("sandbox of {}: {problem}", class.as_str()));
        }
        sandboxes.push((*class, sandbox));
    }
    Ok(sandboxes)
}

fn set(sandbox: &mut Sandbox, key: &str, value: &Value) -> Result<(), String> {
    match key {
        "profile" => read_profile(value).map(drop)?,
        "memory" => sandbox.memory_bytes = limit(value, size, "a size, as \"8GiB\"")?,
        "cpus" => sandbox.cpu_millis = limit(value, millis, "a number, as 2 or 0.5")?,
        "pids" => sandbox.pids = limit(value, Value::as_u64, "a number, as 512")?,
        "disk" => {
            let disk = limit(value, size, "a size, as \"50GiB\"")?;
            // A file is no larger than all files, unless that is said too.
            sandbox.file_bytes = disk;
            sandbox.disk_bytes = disk;
        }
        "disk-entries" => sandbox.disk_entries = limit(value, Value::as_u64, "a number, as 1000000")?,
        "file-size" => sandbox.file_bytes = limit(value, size, "a size, as \"50GiB\"")?,
        "open-files" => sandbox.open_files = limit(value, Value::as_u64, "a number, as 16384")?,
        "read-only-root" => sandbox.read_only_root = truth(value)?,
        "user" => sandbox.user = Some(text(value, "a user, as \"1000:1000\"")?).filter(|user| user != "image"),
        "capabilities" => {
            let right = || format!("is {value}; it should be a list, as [\"CHOWN\"]");
            let names = value.as_array().ok_or_else(right)?;
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            sandbox.capabilities = names.collect::<Option<_>>().ok_or_else(right)?;
        }
        "runtime" => sandbox.runtime = Some(text(value, "a runtime of the engine, as \"runsc\"")?),
        "network" => sandbox.network = text(value, "a network of the engine, as \"none\"")?,
        "gpus" => sandbox.gpus = truth(value)?,
        _ => return Err("is not known".to_owned()),
    }
    Ok(())
}

fn read_profile(value: &Value) -> Result<Profile, String> {
    [Profile::Default, Profile::Strict]
        .into_iter()
        .find(|profile| value == profile.name())
        .ok_or_else(|| format!("is {value}; it should be \"default\" or \"strict\""))
}

/// A limit, or `none`.
fn limit(value: &Value, read: fn(&Value) -> Option<u64>, right: &str) -> Result<Option<u64>, String> {
    if value == "none" {
        return Ok(None);
    }
    read(value).map(Some).ok_or_else(|| format!("is {value}; it should be {right}, or \"none\""))
}

fn truth(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("is {value}; it should be true or false"))
}

fn text(value: &Value, right: &str) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("is {value}; it should be {right}"))
}

fn millis(value: &Value) -> Option<u64> {
    let millis = (value.as_f64()? * 1000.0).round();
    // Below this the kernel takes none.
    (10.0..=1e9).contains(&millis).then_some(millis as u64)
}

/// A number of bytes, or a text with a unit.
fn size(value: &Value) -> Option<u64> {
    value.as_str().map_or_else(|| value.as_u64(), |text| byte_size(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { memory_bytes: 16 << 30, cpus: 8, disk_bytes: 100 << 30, slots: 4 };
    const CLASSES: [ExecutorClass; 2] = [ExecutorClass::AlwaysOnTest, ExecutorClass::AlwaysOnGpu24gb];

    fn read(profile: Option<Profile>, toml: &str) -> Result<Vec<Sandbox>, String> {
        let table: toml::Table = toml.parse().unwrap();
        let json = serde_json::to_string(&table).unwrap();
        let sandboxes = sandboxes(profile, Some(&json), HOST, &CLASSES)?;
        assert_eq!(sandboxes.iter().map(|(class, _)| *class).collect::<Vec<_>>(), CLASSES);
        Ok(sandboxes.into_iter().map(|(_, sandbox)| sandbox).collect())
    }

    #[test]
    fn without_settings_there_are_shares_and_gpus_for_gpu_classes_alone() {
        let all = sandboxes(None, None, HOST, &CLASSES).unwrap();
        let shares = Sandbox::of(Profile::Default, HOST);
        assert_eq!(all[0].1, Sandbox { gpus: false, ..shares.clone() });
        assert_eq!(all[1].1, Sandbox { gpus: true, ..shares });
    }

    #[test]
    fn a_class_goes_before_all_and_a_flag_before_both() {
        let toml = r#"
            memory = "2GiB"
            cpus = 1.5
            pids = "none"
            disk = "10g"
            open_files = 100
            [always_on."gpu-24gb"]
        "#;
        assert!(read(None, toml).unwrap_err().contains("\"always_on\"; it has limits, and a table for each class"));
        let toml = r#"
            memory = "2GiB"
            cpus = 1.5
            pids = "none"
            disk = "10g"
            open_files = 100
            user = "1000:1000"
            ["always_on.gpu-24gb"]
            profile = "strict"
            memory = "none"
            runtime = "nvidia"
            network = "bridge"
            capabilities = ["CHOWN"]
            file-size = 4096
            disk-entries = 10
            user = "image"
            read-only-root = false
            gpus = false
        "#;
        let both = read(None, toml).unwrap();
        let test = Sandbox {
            memory_bytes: Some(2 << 30),
            cpu_millis: Some(1500),
            pids: None,
            disk_bytes: Some(10 << 30),
            file_bytes: Some(10 << 30),
            open_files: Some(100),
            user: Some("1000:1000".into()),
            gpus: false,
            ..Sandbox::of(Profile::Default, HOST)
        };
        assert_eq!(both[0], test);
        let gpu = Sandbox {
            profile: Profile::Strict,
            memory_bytes: None,
            runtime: Some("nvidia".into()),
            network: "bridge".into(),
            capabilities: vec!["CHOWN".into()],
            file_bytes: Some(4096),
            disk_entries: Some(10),
            user: None,
            ..test
        };
        assert_eq!(both[1], gpu);
        let strict = read(Some(Profile::Strict), "memory = 1000000000").unwrap();
        assert!(strict.iter().all(|s| s.read_only_root && s.memory_bytes == Some(1_000_000_000)));
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        for (toml, says) in [
            ("memry = 1", "unknown key \"memry\"; did you mean \"memory\"?"),
            (
                "[\"always_on.test\"]\npid = 1",
                "sandbox \"always_on.test\": unknown key \"pid\"; did you mean \"pids\"?",
            ),
            ("[\"spin_up-4min.gpu-24gb\"]\npids = 1", "no executors of that class"),
            ("\"always_on.test\" = 3", "it should be a table"),
            ("memory = \"8 apples\"", "memory is \"8 apples\"; it should be a size, as \"8GiB\", or \"none\""),
            ("memory = \"1m\"", "less than the 6 MiB"),
            ("memory = \"99999999t\"", "it should be a size"),
            ("memory = \"5MB\"", "less than the 6 MiB"),
            ("pids = -1", "pids is -1; it should be a number"),
            ("pids = 0", "pids is 0"),
            ("cpus = 0.001", "cpus is 0.001; it should be a number"),
            ("profile = \"loose\"", "profile is \"loose\"; it should be \"default\" or \"strict\""),
            ("read-only-root = 1", "it should be true or false"),
            ("capabilities = \"CHOWN\"", "it should be a list"),
            ("capabilities = [\"cap chown\"]", "capability \"cap chown\" is not one"),
            ("network = \"--privileged\"", "network \"--privileged\""),
            ("user = 5", "user is 5; it should be a user"),
        ] {
            let problem = read(None, toml).unwrap_err();
            assert!(problem.contains(says) && !problem.contains('\n'), "{toml}: {problem}");
        }
        assert!(sandboxes(None, Some("[]"), HOST, &CLASSES).unwrap_err().contains("not a JSON object"));
    }

    #[test]
    fn this_host_has_something_of_everything() {
        let here = host(2, &std::env::temp_dir()).unwrap();
        assert!(here.memory_bytes > 64 << 20 && here.cpus > 0 && here.disk_bytes > 0, "{here:?}");
    }
}
