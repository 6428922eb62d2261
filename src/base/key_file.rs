//! Files with a secret that other users can get at: told, never refused.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Says in the log that other users can get at a file which holds a key, and what to do. A pipe says nothing, nor does
/// a file of somebody else that this process reads by its group.
pub(crate) fn tell_if_open(path: &Path, metadata: &Metadata) {
    if let Some(text) = openness(path, metadata) {
        log::warn!("{text}");
    }
}

/// What is to be said of a file which holds a key and that other users can get at.
pub(crate) fn openness(path: &Path, metadata: &Metadata) -> Option<String> {
    is_open(metadata.mode(), metadata.uid() == rustix::process::geteuid().as_raw()).then(|| {
        let (path, mode) = (path.display(), metadata.mode() & 0o7777);
        format!(
            "the key file {path} is open to other users (mode {mode:04o}): make it its owner's alone, by chmod 600 \
             {path}; who has read it has the key"
        )
    })
}

/// Whether others can read or change a file of that mode, which is a regular one of ours or another.
fn is_open(mode: u32, ours: bool) -> bool {
    let is_file = mode & 0o170_000 == 0o100_000;
    is_file && (mode & 0o006 != 0 || ours && mode & 0o060 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_open_if_others_can_read_or_change_it() {
        for (mode, ours, open) in [
            (0o100_600, true, false),
            (0o100_400, true, false),
            (0o100_711, true, false),
            (0o100_644, true, true),
            (0o100_602, true, true),
            (0o100_640, true, true),
            (0o100_620, true, true),
            // Of root, for the group of the service.
            (0o100_640, false, false),
            (0o100_644, false, true),
            // A pipe.
            (0o010_666, true, false),
        ] {
            assert_eq!(is_open(mode, ours), open, "{mode:o} {ours}");
        }
    }
}
