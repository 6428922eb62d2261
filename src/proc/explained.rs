//! Why an engine elsewhere is not reached, found in the many lines of client, `ssh` and TLS. Pure.

use crate::ops::redact::OneLine;

/// The most that is shown of what a client says of an engine elsewhere.
const SHOWN_CHARS: usize = 400;

/// What the words of `docker`, `ssh` and TLS mean, in lower case; the first that is found counts.
const REASONS: &[(&str, &str)] = &[
    (
        "remote host identification has changed",
        "its host key is not the one in known_hosts: somebody is in between, or the machine was set up anew (then \
         remove the old key with ssh-keygen -R)",
    ),
    (
        "host key is known for",
        "its host key is not in known_hosts: compare it with the machine's and add it, by connecting once by hand",
    ),
    ("host key verification failed", "its host key was not accepted"),
    ("revoked host key", "its host key is revoked"),
    ("permission denied (", "it refuses our ssh key or user"),
    ("could not resolve hostname", "its name cannot be resolved"),
    ("certificate has expired or is not yet valid", "its certificate has expired or is not valid yet, by this clock"),
    ("signed by unknown authority", "its certificate is not of the CA that the settings name"),
    ("x509: certificate is valid for", "its certificate is for another name than the address has"),
    ("x509: certificate is not valid for any names", "its certificate is for another name than the address has"),
    ("doesn't contain any ip sans", "its certificate is for another name than the address has"),
    ("tls: certificate required", "it asks for a client certificate and got none"),
    ("tls: bad certificate", "it refuses our certificate: it has expired, or is not of the CA that the engine trusts"),
    ("seems invalid", "our CA is not a PEM file"),
    ("tls: unknown certificate authority", "it refuses our certificate: it is not of the CA that the engine trusts"),
    ("tls: expired certificate", "it refuses our certificate: it has expired"),
    ("tls: private key does not match public key", "our certificate and our key do not belong together"),
    ("tls: failed to find any pem data", "our certificate or key is not a PEM file"),
    ("first record does not look like a tls handshake", "it does not speak TLS"),
    ("docker: not found", "there is no docker program on that machine for this user"),
    ("docker: command not found", "there is no docker program on that machine for this user"),
    ("connection refused", "nothing answers at that port"),
    ("connection timed out", "it does not answer"),
    ("no route to host", "there is no way to it"),
];

/// What clients say when they could not talk to an engine, in lower case. All else is the engine's own answer, with
/// words of others in it.
const NOT_CONNECTED: [&str; 5] = [
    "error during connect",
    "cannot connect to the docker daemon",
    "failed to connect to the docker api",
    "the server probably has client authentication",
    "failed to retrieve context tls info",
];

/// The reason in one line, if the client could not talk to the engine.
pub(super) fn reason(text: &str) -> Option<String> {
    let lower = text.to_lowercase();
    NOT_CONNECTED.iter().find(|words| lower.contains(*words))?;
    if let Some((_, reason)) = REASONS.iter().find(|(words, _)| lower.contains(words)) {
        return Some((*reason).to_owned());
    }
    let said = text.split_once("stderr=").map_or(text, |(_, said)| said).trim();
    Some(OneLine(&said.chars().take(SHOWN_CHARS).collect::<String>()).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_in_many_lines() {
        let said = "error during connect: Get \"http://x/v1/version\": command [ssh -T -- h docker system dial-stdio] \
            has exited with exit status 255, make sure the URL is valid: stderr=";
        for (text, wanted) in [
            (
                format!("{said}@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n"),
                "is not the one in known_hosts",
            ),
            (
                format!(
                    "{said}No ED25519 host key is known for h and you have requested strict checking.\r\nHost key \
                    verification failed.\r\n"
                ),
                "is not in known_hosts",
            ),
            (format!("{said}me@h: Permission denied (publickey).\r\n"), "refuses our ssh key"),
            (format!("{said}kex: odd\r\nend\u{7}"), "kex: odd\\r\\nend\\u{7}"),
            ("error during connect: x509: certificate has expired or is not yet valid: now is".into(), "has expired"),
            ("error during connect: remote error: tls: certificate required".into(), "asks for a client certificate"),
        ] {
            let shown = reason(&text).unwrap();
            assert!(shown.contains(wanted) && !shown.contains('\n'), "{shown}");
        }
        // The engine's own words stay.
        let text = "Error response from daemon: dial tcp 10.0.0.1:443: connect: connection refused";
        assert_eq!(reason(text), None);
    }
}
