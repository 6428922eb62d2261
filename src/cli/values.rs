//! Values of flags: durations with units, classes with counts, addresses.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use super::key::{CREDENTIAL, credential};
use crate::base::limits::STREAMING_ADDRESS_BYTES;
use crate::base::small_file;
use crate::executor::check_image_name;
use crate::link::Rate;
use crate::protocol::ExecutorClass;
#[cfg(feature = "celery")]
pub use crate::{celery::AppConfig, redis::RedisConfig};

/// Celery settings that nothing reads, because the program is built without Celery.
#[cfg(not(feature = "celery"))]
pub type AppConfig = String;

/// A Redis URL that nothing reads, because the program is built without Celery.
#[cfg(not(feature = "celery"))]
pub type RedisConfig = String;

/// Units of times, with their seconds, the largest first.
const UNITS: [(&str, f64); 5] = [("d", 86_400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 0.001)];

/// Reads `500ms`, `10s`, `5m`, `2h`, `1d` or several of them from the largest on, as `1m30s`; `0` needs no unit.
///
/// # Errors
/// What would be right, in words.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "it should be a number with a unit: ms, s, m, h or d, as 10s or 1m30s".to_owned();
    if text.starts_with('-') {
        return Err(format!("a time cannot be less than 0; {}", wrong()));
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut units, mut seconds) = (text, UNITS.as_slice(), 0.0);
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, behind) = rest.split_at(unit_at);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = &behind[..behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len())];
        let at = units.iter().position(|(name, _)| *name == unit).ok_or_else(wrong)?;
        seconds += number * units[at].1;
        (rest, units) = (&behind[unit.len()..], &units[at + 1..]);
    }
    match text {
        "" => Err(wrong()),
        _ => Duration::try_from_secs_f64(seconds).map_err(|_| wrong()),
    }
}

/// Reads the uuid of a job.
///
/// # Errors
/// What would be right, in words.
pub fn job_uuid(text: &str) -> Result<uuid::Uuid, String> {
    let wrong = |_| "a job has a uuid of 36 characters; `phalanx jobs ls` shows those of yours".to_owned();
    uuid::Uuid::try_parse(text.trim()).map_err(wrong)
}

/// Reads `30/60s`: so many at once, which come back one by one in that time.
///
/// # Errors
/// What would be right, in words.
pub fn rate(text: &str) -> Result<Rate, String> {
    let wrong = || "it should be a number and a time, as 30/60s: 30 at once, and over time 30 in 60 s".to_owned();
    let (count, period) = text.split_once('/').ok_or_else(wrong)?;
    match (count.parse(), duration(period)?) {
        (Ok(count @ 1..), period) if !period.is_zero() => Ok(Rate::new(count, period)),
        _ => Err(wrong()),
    }
}

/// Reads `always_on.test=4`.
///
/// # Errors
/// What would be right, in words.
pub fn class_count(text: &str) -> Result<(ExecutorClass, u32), String> {
    let (class, count) = text.split_once('=').ok_or("it should be CLASS=N, as always_on.test=4")?;
    let class: ExecutorClass = class.parse().map_err(|e: crate::protocol::UnknownName| e.to_string())?;
    match count.parse() {
        Ok(count @ 1..=1000) => Ok((class, count)),
        _ => Err(format!("the number of executors is {count:?}; it should be from 1 to 1000")),
    }
}

/// The words of a command line; at least one.
pub type Arguments = VecDeque<String>;

/// Reads a label of a container, as `phalanx.miner=5F…`.
///
/// # Errors
/// What would be right, in words.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it should be NAME=VALUE".to_owned()),
    }
}

/// Reads the name of an image.
///
/// # Errors
/// What would be right, in words.
pub fn image(text: &str) -> Result<String, String> {
    check_image_name(text).map(|()| text.to_owned())
}

/// Reads a command line into its words, by the quoting rules of a POSIX shell; nothing is expanded.
///
/// # Errors
/// What would be right, in words.
pub fn command_line(text: &str) -> Result<Arguments, String> {
    match shlex::split(text) {
        Some(words) if words.first().is_some_and(|program| !program.is_empty()) => Ok(words.into()),
        Some(_) => Err("it is empty; it should be a program and its arguments".to_owned()),
        None => Err("a quote is not closed; quote as in a shell, as \"my program\" --flag".to_owned()),
    }
}

/// Reads `127.0.0.1:9101`, `[::1]:0` or `localhost:9101`; port 0 lets the system choose.
///
/// # Errors
/// What would be right, in words.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| "it should be ADDRESS:PORT, as 127.0.0.1:9101; port 0 lets the system choose".to_owned())
}

/// Reads an IP address or a host name, without a port: what goes into a certificate.
///
/// # Errors
/// What would be right, in words.
pub fn client_address(text: &str) -> Result<String, String> {
    let label =
        |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    let is_name = text.len() <= STREAMING_ADDRESS_BYTES && text.split('.').all(label);
    if text.parse::<IpAddr>().is_ok() || is_name {
        return Ok(text.to_owned());
    }
    Err("it should be an IP address or a host name, without a port, as 203.0.113.7".to_owned())
}

/// Bytes of a credential that is one line: an address with a password.
const CREDENTIAL_BYTES: u64 = 64 << 10;

/// Reads a flag that may be secret: what it says, or the line in the credential of systemd that it names by
/// `credential:NAME`. Blocks on the disk then.
///
/// # Errors
/// What is wrong with the credential, in words.
pub fn secret(text: &str) -> Result<String, String> {
    let Some(name) = text.trim().strip_prefix(CREDENTIAL) else { return Ok(text.to_owned()) };
    let file = credential(name)?;
    let bytes = small_file::read(&file, CREDENTIAL_BYTES).map_err(|error| format!("{}: {error}", file.display()))?;
    let line = String::from_utf8(bytes).map_err(|_| format!("{}: it is no text", file.display()))?;
    match line.trim() {
        "" => Err(format!("{}: it is empty", file.display())),
        line => Ok(line.to_owned()),
    }
}

/// Reads the path of a file, which may be that of a credential of systemd, as `credential:NAME`.
///
/// # Errors
/// What is missing, in words.
pub fn secret_file(text: &str) -> Result<PathBuf, String> {
    match text.trim().strip_prefix(CREDENTIAL) {
        Some(name) => credential(name),
        None => Ok(PathBuf::from(text)),
    }
}

/// Reads the path of a file or an address; `credential:NAME` is the address in that credential, or its file.
///
/// # Errors
/// What is wrong with the credential, in words.
pub fn secret_file_or_address(text: &str) -> Result<PathBuf, String> {
    match secret_file(text)? {
        file if file.as_os_str() == text => Ok(file),
        file => Ok(secret(text).ok().filter(|line| line.starts_with("http")).map_or(file, PathBuf::from)),
    }
}

/// Reads `redis://[[user:]password@]host[:port][/database]`.
///
/// # Errors
/// What is wrong and would be right, in words, without the password.
pub fn redis_url(text: &str) -> Result<RedisConfig, String> {
    let text = secret(text)?;
    #[cfg(feature = "celery")]
    return RedisConfig::parse(&text).map_err(|error| error.to_string());
    #[cfg(not(feature = "celery"))]
    Ok(text)
}

/// Reads the settings of a Celery application, see its `AppConfig`.
///
/// # Errors
/// All that is wrong, in words.
pub fn celery_settings(text: &str) -> Result<AppConfig, String> {
    #[cfg(feature = "celery")]
    return AppConfig::parse(text);
    #[cfg(not(feature = "celery"))]
    Ok(text.to_owned())
}

/// A flag as given, which may hold a password; so it is judged where it is used and not by clap, which would repeat it.
#[derive(Clone)]
pub struct Hidden(pub String);

impl Hidden {
    /// The flag, or the credential that it names.
    ///
    /// # Errors
    /// What is wrong with the credential, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        secret(text).map(Self)
    }
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden")
    }
}

/// What is wrong if `--listen` and `--http` are one address.
pub(super) fn one_address(listen: SocketAddr, http: SocketAddr) -> Option<String> {
    let is_all = |address: SocketAddr| address.ip().is_unspecified();
    let is_one = listen.port() == http.port() && listen.port() != 0;
    let overlap = listen.ip() == http.ip() || is_all(listen) || is_all(http);
    (is_one && overlap).then(|| {
        format!("--listen {listen} and --http {http} are one address; give each a port of its own, or 0 for any")
    })
}

/// All that is wrong with the settings of a command, a line each.
#[derive(Debug, Default)]
pub(super) struct Problems(pub(super) Vec<String>);

impl Problems {
    /// What an outcome gives; its problem is kept.
    pub(super) fn take<T>(&mut self, outcome: Result<T, String>) -> Option<T> {
        outcome.map_err(|problem| self.0.push(problem)).ok()
    }

    /// One more, if there is one.
    pub(super) fn add(&mut self, problem: Option<String>) {
        self.0.extend(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_cannot_have_one_address() {
        let one = |listen: &str, http: &str| one_address(listen.parse().unwrap(), http.parse().unwrap());
        for (listen, http) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "[::]:1"),
            ("[::]:1", "0.0.0.0:1"),
        ] {
            let problem = one(listen, http).unwrap();
            assert!(problem.contains("--listen") && problem.contains("--http"), "{problem}");
        }
        for (listen, http) in
            [("127.0.0.1:1", "127.0.0.1:2"), ("127.0.0.1:0", "127.0.0.1:0"), ("127.0.0.1:1", "127.0.0.2:1")]
        {
            assert_eq!(one(listen, http), None);
        }
    }

    #[test]
    fn a_uuid_is_a_whole_one() {
        assert_eq!(job_uuid("3F3D3B38-8B0F-4A8C-A5CB-7A4C0F3B3E10").unwrap().as_u128() >> 96, 0x3f3d_3b38);
        assert!(job_uuid("7f416ff7").unwrap_err().contains("36 characters; `phalanx jobs ls` shows"));
    }

    #[test]
    fn durations_carry_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("1.5s", 1500),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("0", 0),
            ("0s", 0),
            ("1m30s", 90_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("1h1ms", 3_600_001),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in
            ["", "5", "s", "1w", "-1s", "1e400s", "1 s", "30s1m", "1m1m", "1m30", "1..5s", "99999999999999999999d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_have_a_count_and_a_time() {
        for (text, count, seconds) in [("30/60s", 30, 60), ("1/1m", 1, 60), ("2000/1s", 2000, 1)] {
            assert_eq!(rate(text).unwrap(), Rate::new(count, Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "30", "30/", "0/1s", "30/0s", "-1/1s", "x/1s", "30/60"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn command_lines_have_words() {
        assert_eq!(command_line("python3 'a b' --x=\"c\"").unwrap(), ["python3", "a b", "--x=c"]);
        for text in ["", "  ", "''", "python3 'a"] {
            assert!(command_line(text).is_err(), "{text}");
        }
    }

    #[test]
    fn clients_dial_an_address_or_a_name() {
        for text in ["203.0.113.7", "2001:db8::1", "executor-1.example.org", "localhost"] {
            assert_eq!(client_address(text).unwrap(), text);
        }
        for text in ["", "203.0.113.7:6006", "http://a", "a..b", "[::1]", "a b", &"x".repeat(257)] {
            assert!(client_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn classes_have_counts() {
        assert_eq!(class_count("always_on.test=4").unwrap(), (ExecutorClass::AlwaysOnTest, 4));
        for text in ["always_on.test", "always_on.test=0", "nope=1", "always_on.test=x"] {
            assert!(class_count(text).is_err(), "{text}");
        }
    }
}
