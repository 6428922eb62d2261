//! What is made of certificate files, made anew when the files change.
//!
//! No thread looks: whoever begins a connection does, at most every five seconds, and the others go on with what there
//! is. Files that do not fit together, as while they are being written, change nothing; if they stay so, it is logged.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::pem::TlsFileError;
use crate::base::clock::now;
use crate::base::lock::lock;
use crate::base::stamp::Stamp;
use crate::ops::expiry::Expiry;

/// How often it is looked whether the files have changed.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);

type Load<T> = Box<dyn Fn() -> Result<(T, Option<u64>), TlsFileError> + Send + Sync>;

/// A value that is made of files.
pub(super) struct Live<T> {
    files: Vec<PathBuf>,
    /// The value, and when the certificates in it end, in seconds since 1970.
    load: Load<T>,
    expiry: Expiry,
    state: Mutex<LiveState<T>>,
}

struct LiveState<T> {
    value: Arc<T>,
    /// As the files were when the value was made.
    made_of: Vec<Option<Stamp>>,
    /// As they were when they could not be used, and whether that was logged.
    trouble: Option<(Vec<Option<Stamp>>, bool)>,
    looked: Instant,
}

impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Live").field(&self.files).finish()
    }
}

impl<T> Live<T> {
    /// Makes the first value. Blocks on the disk.
    ///
    /// # Errors
    /// What `load` says.
    pub(super) fn new(
        what: &'static str,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<(T, Option<u64>), TlsFileError> + Send + Sync + 'static,
    ) -> Result<Self, TlsFileError> {
        let made_of = stamps(&files);
        let (value, until) = load()?;
        let shown = files.first().map(|file| file.display().to_string()).unwrap_or_default();
        let expiry = Expiry::new(what, shown, until);
        let state = LiveState { value: Arc::new(value), made_of, trouble: None, looked: Instant::now() };
        Ok(Self { files, load: Box::new(load), expiry, state: Mutex::new(state) })
    }

    /// When its certificates end.
    pub(super) fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    /// The value of the files as they are, give or take five seconds. Blocks on the disk, now and then.
    pub(super) fn get(&self) -> Arc<T> {
        self.get_at(Instant::now())
    }

    fn get_at(&self, at: Instant) -> Arc<T> {
        {
            let mut state = lock(&self.state);
            if self.files.is_empty() || at.saturating_duration_since(state.looked) < LOOK_EVERY {
                return state.value.clone();
            }
            state.looked = at;
        }
        // Without the lock: a disk that hangs holds up this connection alone.
        self.expiry.warn(now().wall.as_secs());
        let present = stamps(&self.files);
        let to_tell = {
            let state = lock(&self.state);
            match &state.trouble {
                _ if state.made_of == present => return state.value.clone(),
                Some((stamps, true)) if *stamps == present => return state.value.clone(),
                trouble => trouble.as_ref().is_some_and(|(stamps, _)| *stamps == present),
            }
        };
        match self.make(present.clone()) {
            Ok(said) => log::info!("{said}"),
            Err(error) => {
                if to_tell {
                    log::error!("{error}; the certificate in use stays as it is until the files are right");
                }
                lock(&self.state).trouble = Some((present, to_tell));
            }
        }
        lock(&self.state).value.clone()
    }

    /// Makes the value of the files as they are now, changed or not, and says in a sentence what it is made of. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// What is wrong with a file; the value stays as it was.
    pub(super) fn reload(&self) -> Result<String, TlsFileError> {
        self.make(stamps(&self.files))
    }

    fn make(&self, of: Vec<Option<Stamp>>) -> Result<String, TlsFileError> {
        let (value, until) = (self.load)()?;
        let mut state = lock(&self.state);
        (state.value, state.made_of, state.trouble) = (Arc::new(value), of, None);
        drop(state);
        self.expiry.set(until);
        let until = until.map(|until| format!(", good until {}", super::facts::day(until))).unwrap_or_default();
        Ok(format!("read again: the {}{until}", self.expiry.what()))
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn live(file: &Path) -> Result<Live<String>, TlsFileError> {
        let path = file.to_owned();
        Live::new("text", vec![path.clone()], move || match std::fs::read_to_string(&path) {
            Ok(text) if text != "bad" => Ok((text, None)),
            _ => Err(TlsFileError { path: path.display().to_string(), problem: "is bad".to_owned() }),
        })
    }

    #[test]
    fn a_change_is_seen_after_a_while_and_what_cannot_be_used_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        let write = |text: &str| {
            // As who renews a certificate does it: with another file in its place.
            std::fs::write(folder.path().join("new"), text).unwrap();
            std::fs::rename(folder.path().join("new"), &file).unwrap();
        };
        assert!(live(&file).is_err());
        write("1");
        let live = live(&file).unwrap();
        let (start, mut looks) = (Instant::now(), 0);
        let mut look = |live: &Live<String>| {
            looks += 1;
            live.get_at(start + LOOK_EVERY * 2 * looks).as_str().to_owned()
        };
        write("2");
        assert_eq!(live.get_at(start).as_str(), "1", "it is not looked at each time");
        assert_eq!(look(&live), "2");
        write("bad");
        let is_told = |live: &Live<String>| lock(&live.state).trouble.as_ref().is_some_and(|(_, told)| *told);
        assert_eq!((look(&live).as_str(), is_told(&live)), ("2", false), "it may be under way");
        assert_eq!((look(&live).as_str(), is_told(&live)), ("2", true));
        assert_eq!(live.reload().unwrap_err().problem, "is bad");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(look(&live), "2");
        write("3");
        assert_eq!((look(&live).as_str(), is_told(&live)), ("3", false));
        write("4");
        assert_eq!(
            (live.reload().unwrap().as_str(), live.get().as_str()),
            (format!("read again: the text certificate {}", file.display()).as_str(), "4")
        );
    }
}
