//! What SIGHUP does not change: flags that take a restart.

/// Such flags, with what they say.
pub(super) struct Fixed(pub(super) Vec<(&'static str, String)>);

impl Fixed {
    /// Those that say something else by now: the flag, what it said, and what it says.
    pub(super) fn changed<'a>(&'a self, now: &'a Self) -> impl Iterator<Item = (&'static str, &'a str, &'a str)> {
        let pairs = self.0.iter().zip(&now.0);
        pairs.filter(|((_, then), (_, now))| then != now).map(|((flag, then), (_, now))| (*flag, &**then, &**now))
    }

    /// Warns of one.
    pub(super) fn warn(flag: &str) {
        log::warn!("SIGHUP: {flag} is another one now; that takes a restart");
    }
}
