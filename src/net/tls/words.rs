//! Why a TLS handshake failed, and what a good certificate would be, in words. Pure.

use std::{fmt, io};

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, Error, InvalidMessage, OtherError};

use super::facts::{Facts, day, shown_names};

/// A certificate of an authority that is not trusted.
#[derive(Debug)]
pub(super) struct UnknownAuthority {
    issuer: String,
    is_self_signed: bool,
}

impl UnknownAuthority {
    pub(super) fn of(facts: Option<Facts>) -> CertificateError {
        match facts {
            Some(Facts { issuer, is_self_signed, .. }) => {
                CertificateError::Other(OtherError(std::sync::Arc::new(Self { issuer, is_self_signed })))
            }
            None => CertificateError::UnknownIssuer,
        }
    }
}

impl std::error::Error for UnknownAuthority {}

impl fmt::Display for UnknownAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_self_signed {
            true => f.write_str(
                "its certificate is self-signed and not among the trusted ones; if it is the right one, give it by \
                 --tls-ca FILE",
            ),
            false => write!(
                f,
                "its certificate is of the authority {:?}, which is not trusted here; if it is the right one, give \
                 that authority's certificate by --tls-ca FILE",
                self.issuer
            ),
        }
    }
}

/// The error in words. The peer is "it", because whoever shows this names it.
pub fn explain(error: &Error) -> String {
    let problem = match error {
        Error::InvalidCertificate(problem) => problem,
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            return "it does not speak TLS; an address without TLS begins with ws://, http:// or redis://".to_owned();
        }
        error => return error.to_string(),
    };
    match problem {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate ended on {}, {}; it needs a new one, or the clock here ({}) is wrong",
            day(not_after.as_secs()),
            ago(*time, *not_after),
            day(time.as_secs())
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate begins on {}; wait for that, or set the clock here ({}) right",
            day(not_before.as_secs()),
            day(time.as_secs())
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = name_of(expected);
            let presented: Vec<String> = presented.iter().map(|name| bare(name).to_owned()).collect();
            format!(
                "its certificate is for {} and not for {expected}; a good one names {expected}, or give the name that \
                 it has by --tls-server-name",
                shown_names(&presented)
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for this use; a good one has the extended key usage serverAuth (of a client: \
             clientAuth), or none"
                .to_owned()
        }
        CertificateError::UnknownIssuer => "its certificate is of an authority that is not trusted here; if it is the \
                                            right one, give that authority's certificate by --tls-ca FILE"
            .to_owned(),
        CertificateError::BadSignature => {
            "its certificate is not signed by the authority that it names; is an older one among the trusted \
             certificates?"
                .to_owned()
        }
        CertificateError::Other(OtherError(other)) if other.is::<UnknownAuthority>() => other.to_string(),
        CertificateError::Other(OtherError(other)) => format!("its certificate is refused: {other}"),
        other => format!("its certificate is refused: {other}"),
    }
}

/// The error of rustls in words, if that is what is behind one of I/O; else what the system says.
pub fn explain_io(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.map_or_else(|| error.to_string(), explain)
}

fn ago(now: UnixTime, then: UnixTime) -> String {
    match now.as_secs().saturating_sub(then.as_secs()) {
        seconds @ 0..3600 => format!("{} minutes ago", seconds / 60),
        seconds @ 3600..172_800 => format!("{} hours ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

fn name_of(name: &ServerName<'_>) -> String {
    match name {
        ServerName::IpAddress(address) => std::net::IpAddr::from(*address).to_string(),
        name => name.to_str().into_owned(),
    }
}

/// The name in `DnsName("a.example")` or `IpAddress(127.0.0.1)`.
fn bare(presented: &str) -> &str {
    let inner = presented.split_once('(').map_or(presented, |(_, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_error_says_what_would_be_right() {
        let at = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(days * 86_400));
        let named = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("127.0.0.1").unwrap(),
            presented: vec!["DnsName(\"a.example\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()],
        };
        let facts = |is_self_signed| Facts {
            names: Vec::new(),
            not_before: 0,
            not_after: 0,
            issuer: "Acme CA".to_owned(),
            is_self_signed,
            is_for_servers: true,
        };
        for (problem, says) in [
            (
                CertificateError::ExpiredContext { time: at(100), not_after: at(90) },
                "its certificate ended on 1970-04-01, 10 days ago; it needs a new one, or the clock here (1970-04-11)",
            ),
            (CertificateError::NotValidYetContext { time: at(1), not_before: at(2) }, "begins on 1970-01-03"),
            (named, "is for a.example, 10.0.0.1 and not for 127.0.0.1; a good one names 127.0.0.1, or give the name"),
            (UnknownAuthority::of(Some(facts(true))), "is self-signed and not among the trusted ones"),
            (UnknownAuthority::of(Some(facts(false))), "of the authority \"Acme CA\", which is not trusted here"),
            (UnknownAuthority::of(None), "of an authority that is not trusted here"),
            (CertificateError::InvalidPurpose, "extended key usage serverAuth"),
            (CertificateError::BadSignature, "not signed by the authority"),
            (CertificateError::Revoked, "its certificate is refused: "),
        ] {
            let text = explain(&Error::InvalidCertificate(problem));
            assert!(text.contains(says), "{text}");
        }
        let plain = explain(&Error::InvalidMessage(InvalidMessage::InvalidContentType));
        assert!(plain.contains("does not speak TLS"), "{plain}");
        assert_eq!(explain(&Error::DecryptError), Error::DecryptError.to_string());
    }
}
