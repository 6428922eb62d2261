//! The public certificate authorities: those that come with the program, or those of the system.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{env, fmt, fs};

use rustls::RootCertStore;

use super::pem::{TlsFileError, bad_file, certificates};

/// Where systems keep the bundle of all public authorities: Debian and Alpine; Fedora; SUSE; FreeBSD and OpenBSD.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
    "/etc/ssl/cert.pem",
];

/// Files of a folder of authorities that are read: systems have some 400, with a link for each.
const FOLDER_FILES: usize = 2000;

/// Which public authorities are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Roots {
    /// Those of Mozilla's list that come with the program.
    #[default]
    Bundled,
    /// Those of the system: the file of `SSL_CERT_FILE` and the folders of `SSL_CERT_DIR`, else the system's bundle.
    System,
    /// None.
    None,
}

impl Roots {
    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bundled => "bundled",
            Self::System => "system",
            Self::None => "none",
        }
    }

    pub(super) fn load(self) -> Result<RootCertStore, TlsFileError> {
        match self {
            Self::Bundled => Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }),
            Self::None => Ok(RootCertStore::empty()),
            Self::System => {
                let file = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
                let folders = env::var_os("SSL_CERT_DIR");
                let folders = folders.map(|all| env::split_paths(&all).collect()).unwrap_or_default();
                of_system(file, folders)
            }
        }
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Roots {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Bundled, Self::System, Self::None]
            .into_iter()
            .find(|roots| roots.name() == text)
            .ok_or_else(|| "it should be bundled, system or none".to_owned())
    }
}

fn of_system(file: Option<PathBuf>, folders: Vec<PathBuf>) -> Result<RootCertStore, TlsFileError> {
    let mut store = RootCertStore::empty();
    let is_said = file.is_some() || !folders.is_empty();
    let bundle = BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file());
    if let Some(path) = file.or_else(|| bundle.filter(|_| !is_said)) {
        // Those that rustls cannot use are left out, as every program does with a system's bundle.
        store.add_parsable_certificates(certificates(&path)?);
    }
    for folder in folders {
        let unreadable = |e: std::io::Error| bad_file(&folder, &format!("SSL_CERT_DIR: cannot read the folder: {e}"));
        for entry in fs::read_dir(&folder).map_err(unreadable)?.take(FOLDER_FILES) {
            let path = entry.map_err(unreadable)?.path();
            // Beside certificates there are lists of revoked ones, and notes.
            if path.is_file()
                && let Ok(found) = certificates(&path)
            {
                store.add_parsable_certificates(found);
            }
        }
    }
    if store.is_empty() {
        let problem = "there is no certificate of an authority; install the package ca-certificates, or say where they \
                       are by SSL_CERT_FILE";
        return Err(bad_file(Path::new("the system's authorities"), problem));
    }
    Ok(store)
}

#[cfg(all(test, feature = "roles"))]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_folders_are_the_system_s_authorities() {
        let folder = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
            authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let pem = authority.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
            fs::write(folder.path().join(name), pem).unwrap();
        };
        made("a.pem");
        made("b.0");
        fs::write(folder.path().join("notes"), "nothing").unwrap();
        let of = |file: Option<&str>, folders| of_system(file.map(|name| folder.path().join(name)), folders);
        assert_eq!(of(Some("a.pem"), Vec::new()).unwrap().len(), 1);
        assert_eq!(of(None, vec![folder.path().to_owned()]).unwrap().len(), 2);
        assert_eq!(of(Some("a.pem"), vec![folder.path().to_owned()]).unwrap().len(), 3);
        let error = of(Some("notes"), Vec::new()).unwrap_err();
        assert!(error.to_string().contains("notes: has no certificate"), "{error}");
        let error = of(None, vec![folder.path().join("none")]).unwrap_err();
        assert!(error.to_string().contains("SSL_CERT_DIR"), "{error}");
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for roots in [Roots::Bundled, Roots::System, Roots::None] {
            assert_eq!(roots.to_string().parse(), Ok(roots));
        }
        assert!("public".parse::<Roots>().is_err());
    }
}
