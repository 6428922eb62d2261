//! What people want to know of a certificate: for which names it is, from when to when, of whose authority. Pure.
//!
//! It is for texts, the choice of a name and the warning before the end. Whether a certificate is good, rustls says;
//! the time and the purpose count here only for one that is itself among the trusted ones, see `verify`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use speedate::{Date, DateConfig, DateTime, TimestampUnit};

/// Names that a text shows of one certificate.
const NAMES_SHOWN: usize = 8;

/// Names that are read of one certificate: those of large sites have some hundred.
const NAMES: usize = 1000;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 17];
const KEY_PURPOSES: &[u8] = &[0x55, 0x1d, 37];
const FOR_SERVERS: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const FOR_ANYTHING: &[u8] = &[0x55, 0x1d, 37, 0];

/// What is known of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The host names and addresses that it is for.
    pub(crate) names: Vec<String>,
    /// Seconds since 1970 from which on it is good.
    pub(crate) not_before: u64,
    /// Seconds since 1970 until which it is good.
    pub(crate) not_after: u64,
    /// Its authority, as the certificate calls it.
    pub(crate) issuer: String,
    /// It names itself as its authority.
    pub(crate) is_self_signed: bool,
    /// It may be a server's.
    pub(crate) is_for_servers: bool,
}

impl Facts {
    /// Reads a certificate; `None` if it is not built as one.
    pub(crate) fn read(certificate: &[u8]) -> Option<Self> {
        let mut certificate = Der(certificate).take(SEQUENCE)?;
        let mut parts = certificate.take(SEQUENCE)?;
        parts.take_if(VERSION);
        let (_serial, _algorithm) = (parts.any()?, parts.take(SEQUENCE)?);
        let issuer = parts.take(SEQUENCE)?;
        let mut validity = parts.take(SEQUENCE)?;
        let (not_before, not_after) = (time(validity.any()?)?, time(validity.any()?)?);
        let subject = parts.take(SEQUENCE)?;
        let _key = parts.take(SEQUENCE)?;
        let mut facts = Self {
            names: Vec::new(),
            not_before,
            not_after,
            issuer: called(issuer),
            is_self_signed: issuer.0 == subject.0,
            is_for_servers: true,
        };
        let mut extensions = Der(&[]);
        while let Some((tag, content)) = parts.any() {
            if tag == EXTENSIONS {
                extensions = Der(content).take(SEQUENCE)?;
            }
        }
        while let Some(mut extension) = extensions.take_if(SEQUENCE) {
            let (kind, mut value) = (extension.take(OID)?, None);
            // Perhaps "critical" stands before it.
            while let Some((tag, content)) = extension.any() {
                value = (tag == OCTETS).then_some(Der(content)).or(value);
            }
            match kind.0 {
                ALTERNATIVE_NAMES => facts.names = names(value?.take(SEQUENCE)?),
                KEY_PURPOSES => facts.is_for_servers = is_for_servers(value?.take(SEQUENCE)?),
                _ => {}
            }
        }
        Some(facts)
    }

    /// Whether it is for this host name or address.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
            None => name.eq_ignore_ascii_case(host) || name.parse::<IpAddr>().is_ok_and(|at| host.parse() == Ok(at)),
        })
    }

    /// A name that it covers, if it has one.
    pub(crate) fn usable_name(&self) -> Option<String> {
        // Any one label stands for a star.
        self.names.first().map(|name| name.replacen('*', "miner", 1))
    }

    /// Its names, for people.
    pub(crate) fn shown_names(&self) -> String {
        shown_names(&self.names)
    }
}

/// Names for people: at most eight, and how many more there are.
pub(super) fn shown_names(names: &[String]) -> String {
    if names.is_empty() {
        return "no name".to_owned();
    }
    let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Seconds since 1970 as a day of the calendar in UTC, as `2026-01-31`.
pub(crate) fn day(unix_seconds: u64) -> String {
    let config = DateConfig { timestamp_unit: TimestampUnit::Second };
    let date = i64::try_from(unix_seconds).ok().and_then(|at| Date::from_timestamp(at, false, &config).ok());
    date.map_or_else(|| "a day beyond 9999".to_owned(), |date| date.to_string())
}

/// Values of DER, one after the other.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag and its content.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = match first {
            short @ 0..=0x7f => usize::from(short),
            // No certificate has a part of 16 MiB or more.
            long @ 0x81..=0x83 => {
                let (bytes, behind) = rest.split_at_checked(usize::from(long - 0x80))?;
                rest = behind;
                bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
            }
            _ => return None,
        };
        let (content, behind) = rest.split_at_checked(length)?;
        self.0 = behind;
        Some((tag, content))
    }

    fn take(&mut self, wanted: u8) -> Option<Self> {
        self.any().filter(|(tag, _)| *tag == wanted).map(|(_, content)| Self(content))
    }

    /// The next value if it has that tag; else nothing is taken.
    fn take_if(&mut self, wanted: u8) -> Option<Self> {
        let mut ahead = *self;
        let taken = ahead.take(wanted)?;
        *self = ahead;
        Some(taken)
    }
}

fn time((tag, text): (u8, &[u8])) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        // RFC 5280, section 4.1.2.5.1.
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: u32 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    if rest.len() != 10 || !rest.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |at| &rest[at..at + 2];
    let moment = format!("{year:04}-{}-{}T{}:{}:{}Z", part(0), part(2), part(4), part(6), part(8));
    // A certificate may say "before 1970" to mean "always".
    Some(u64::try_from(DateTime::parse_str(&moment).ok()?.timestamp()).unwrap_or(0))
}

/// What a name in a certificate says: the common name, or the organization.
fn called(mut name: Der<'_>) -> String {
    let mut found = None;
    while let Some(mut set) = name.take_if(SET) {
        while let Some(mut part) = set.take_if(SEQUENCE) {
            let (Some(kind), Some((_, text))) = (part.take(OID), part.any()) else { continue };
            let text = || String::from_utf8_lossy(text).into_owned();
            match kind.0 {
                COMMON_NAME => found = Some(text()),
                ORGANIZATION => found = found.or_else(|| Some(text())),
                _ => {}
            }
        }
    }
    found.unwrap_or_else(|| "without a name".to_owned())
}

fn names(mut from: Der<'_>) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((tag, content)) = from.any()
        && names.len() < NAMES
    {
        match tag {
            DNS_NAME => names.push(String::from_utf8_lossy(content).into_owned()),
            IP_ADDRESS => names.extend(address(content).map(|address| address.to_string())),
            _ => {}
        }
    }
    names
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).into())).ok()
}

fn is_for_servers(mut purposes: Der<'_>) -> bool {
    while let Some(purpose) = purposes.take_if(OID) {
        if purpose.0 == FOR_SERVERS || purpose.0 == FOR_ANYTHING {
            return true;
        }
    }
    false
}

#[cfg(all(test, feature = "roles"))]
mod tests {
    use super::*;

    fn made(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Vec<u8> {
        let names = ["a.example".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let mut certificate = rcgen::CertificateParams::new(names).unwrap();
        certificate.distinguished_name.push(rcgen::DnType::CommonName, "The Authority");
        change(&mut certificate);
        certificate.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn names_times_authority_and_purpose_are_read() {
        let der = made(|certificate| {
            certificate.not_before = rcgen::date_time_ymd(2020, 2, 29);
            certificate.not_after = rcgen::date_time_ymd(2051, 1, 1);
        });
        let facts = Facts::read(&der).unwrap();
        assert_eq!(facts.names, ["a.example", "127.0.0.1", "::1"]);
        assert_eq!((day(facts.not_before), day(facts.not_after)), ("2020-02-29".to_owned(), "2051-01-01".to_owned()));
        assert!(facts.is_self_signed && facts.is_for_servers && facts.issuer.contains("The Authority"), "{facts:?}");
        let client = |certificate: &mut rcgen::CertificateParams| {
            certificate.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            certificate.subject_alt_names.clear();
        };
        let facts = Facts::read(&made(client)).unwrap();
        assert!(!facts.is_for_servers && facts.names.is_empty(), "{facts:?}");
    }

    #[test]
    fn what_is_cut_or_changed_is_no_certificate_and_no_panic() {
        let der = made(|_| {});
        for end in 0..der.len() {
            assert!(Facts::read(&der[..end]).is_none(), "{end}");
        }
        for at in 0..der.len() {
            for byte in [0, 0x7f, 0x80, 0x83, 0xff] {
                let mut changed = der.clone();
                changed[at] = byte;
                let _ = Facts::read(&changed);
            }
        }
    }

    #[test]
    fn a_host_is_covered_by_its_name_its_address_or_a_star() {
        let facts = |names: &[&str]| Facts {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Facts::read(&made(|_| {})).unwrap()
        };
        let some = facts(&["*.a.example", "B.example", "::1"]);
        for (host, covered) in [
            ("x.a.example", true),
            ("a.example", false),
            ("x.y.a.example", false),
            ("b.EXAMPLE.", true),
            ("0:0::1", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(some.covers(host), covered, "{host}");
        }
        assert!(some.covers(&some.usable_name().unwrap()));
        assert_eq!(facts(&[]).usable_name(), None);
    }

    #[test]
    fn many_names_are_counted() {
        let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
        assert_eq!(shown_names(&names), "n0, n1, n2, n3, n4, n5, n6, n7 and 2 more");
        assert_eq!(shown_names(&[]), "no name");
    }
}
