//! What the `docker` program is given of our environment and of the operator's configuration.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};

/// Variables, or beginnings of their names, that the program needs: to be found and to find its engine, over TLS, SSH
/// or a proxy. They are handed on; everything else of ours, and all of a job's, is not.
const HANDED_ON: [&str; 18] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "XDG_",
    "DOCKER_",
    "CONTAINER_",
    "CONTAINERS_",
    "REGISTRY_AUTH_FILE",
    "SSH_AUTH_SOCK",
    "SSL_CERT_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// The variables that the program gets.
pub(super) fn environment(
    ours: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    let handed_on = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        HANDED_ON.iter().any(|known| match known.ends_with('_') {
            true => name.starts_with(known.as_bytes()),
            false => name == known.as_bytes(),
        })
    };
    ours.filter(move |(name, _)| handed_on(name))
}

/// A configuration folder of the program without the operator's registry log-ins, proxies and plug-ins, but with the
/// same engine. It is removed when dropped.
#[derive(Debug)]
pub struct PrivateConfig {
    folder: tempfile::TempDir,
    operators: Option<PathBuf>,
}

impl PrivateConfig {
    /// Makes the folder below `TMPDIR`.
    ///
    /// # Errors
    /// What the system says.
    pub fn create() -> io::Result<Self> {
        let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self::create_for(named("DOCKER_CONFIG").or_else(|| named("HOME").map(|home| home.join(".docker"))))
    }

    fn create_for(operators: Option<PathBuf>) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("phalanx-docker-").tempdir()?;
        let mut config = json!({});
        if let Some(operators) = &operators {
            // Which engine `docker context use` has chosen. Without such a file it is the default one.
            let text = fs::read_to_string(operators.join("config.json")).unwrap_or_default();
            if let Ok(Value::Object(mut fields)) = serde_json::from_str(&text)
                && let Some(context) = fields.remove("currentContext")
            {
                config["currentContext"] = context;
            }
            std::os::unix::fs::symlink(operators.join("contexts"), folder.path().join("contexts"))?;
        }
        fs::write(folder.path().join("config.json"), config.to_string())?;
        fs::write(folder.path().join("auth.json"), "{}")?;
        Ok(Self { folder, operators })
    }

    /// The variables that make the program use it.
    pub(super) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut environment = vec![
            ("DOCKER_CONFIG", self.folder.path().into()),
            // Of podman, which would look at other places of its own.
            ("REGISTRY_AUTH_FILE", self.folder.path().join("auth.json").into()),
        ];
        // The keys for an engine behind TLS are in the configuration folder, unless it is said where.
        if let (Some(operators), None) = (&self.operators, std::env::var_os("DOCKER_CERT_PATH")) {
            environment.push(("DOCKER_CERT_PATH", operators.into()));
        }
        environment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_finds_the_engine_is_handed_on() {
        let given = ["PATH", "DOCKER_HOST", "no_proxy", "EXECUTOR_TOKEN", "HF_TOKEN", "PATHS", "LD_PRELOAD", "GODEBUG"];
        let kept = environment(given.map(|name| (name.into(), "x".into())).into_iter());
        assert_eq!(kept.map(|(name, _)| name).collect::<Vec<_>>(), ["PATH", "DOCKER_HOST", "no_proxy"]);
    }

    #[test]
    fn a_private_configuration_keeps_the_engine_and_no_secret() {
        let operators = tempfile::tempdir().unwrap();
        let text = r#"{"auths": {"r": {"auth": "secret"}}, "credsStore": "secret", "currentContext": "far",
            "proxies": {"default": {"httpProxy": "secret"}}}"#;
        fs::write(operators.path().join("config.json"), text).unwrap();
        fs::create_dir(operators.path().join("contexts")).unwrap();
        fs::write(operators.path().join("contexts/meta"), "far is there").unwrap();
        let config = PrivateConfig::create_for(Some(operators.path().to_owned())).unwrap();
        let folder = config.folder.path().to_owned();
        assert_eq!(fs::read_to_string(folder.join("config.json")).unwrap(), r#"{"currentContext":"far"}"#);
        assert_eq!(fs::read_to_string(folder.join("contexts/meta")).unwrap(), "far is there");
        drop(config);
        assert!(!folder.exists() && operators.path().join("contexts/meta").exists());
        let none = PrivateConfig::create_for(None).unwrap();
        assert_eq!(fs::read_to_string(none.folder.path().join("config.json")).unwrap(), "{}");
    }
}
