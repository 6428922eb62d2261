//! Which registry an image is pulled from, and whether jobs may reach it.

use std::time::Instant;

use super::image_name;
use super::stages::Problem;
use crate::base::shutdown::{Level, Shutdown};
use crate::net::address;
use crate::net::dial::{DialError, check_reach};
use crate::net::reach::Reach;

/// The host of the registry that an image's name begins with; `None` for the engine's own default.
fn host_of(image: &str) -> Option<&str> {
    let registry = image_name::registry(image)?;
    let host = address::split(registry).map_or(registry, |(host, _)| host);
    (!matches!(host, "docker.io" | "index.docker.io")).then_some(host)
}

/// Refuses an image whose registry jobs may not reach, before the engine is asked for it: the engine would dial in our
/// place, and its answer would tell what is there. An image that is here already is refused by its name all the same.
///
/// The engine looks the name up once more; who controls a name can change it in between, so a firewall of the engine's
/// own, or a list of allowed images, is for those who have secrets on their network. Blocks as a look-up.
///
/// A name that we cannot look up is left to the engine: it will not find it either, and an image of that name may be
/// here.
///
/// # Errors
/// The job's if it is out of reach.
pub(super) fn check(image: &str, reach: &Reach, token: &Shutdown, deadline: Instant) -> Result<(), Problem> {
    let Some(host) = host_of(image) else { return Ok(()) };
    match check_reach(reach, host, deadline, token, Level::Cancel) {
        Ok(()) => Ok(()),
        Err(DialError::Cancelled) => Err(Problem::Cancelled),
        Err(error @ DialError::Timeout { .. }) => Err(Problem::TimedOut(format!("image {image}: {error}"))),
        Err(error @ DialError::OutOfReach { .. }) => Err(Problem::OfJob(format!("image {image}: {error}"))),
        Err(error) => {
            log::info!("image {image}: {error}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_host_is_what_docker_takes_for_one() {
        for (image, host) in [
            ("busybox", None),
            ("busybox:1.36", None),
            ("library/busybox@sha256:00", None),
            ("a/b/c", None),
            ("localhost:5000", None),
            ("docker.io/library/busybox", None),
            ("index.docker.io/library/busybox", None),
            ("registry.example/a/b:1", Some("registry.example")),
            ("localhost/x", Some("localhost")),
            ("localhost:5000/x", Some("localhost")),
            ("LOCALHOST/x", Some("LOCALHOST")),
            ("Host/x", Some("Host")),
            ("10.0.0.1:5000/x", Some("10.0.0.1")),
            ("2130706433:80/x", Some("2130706433")),
            ("[::1]:5000/x", Some("::1")),
            ("[::1/x", Some("[::1")),
        ] {
            assert_eq!(host_of(image), host, "{image}");
        }
    }

    #[test]
    fn an_image_out_of_reach_is_the_job_s_fault_and_names_its_host() {
        let far = Instant::now() + Duration::from_secs(30);
        let check = |image, reach: &Reach| check(image, reach, &Shutdown::new(), far);
        let open = Reach::Global(vec!["127.0.0.0/8".parse().unwrap()]);
        for image in ["127.0.0.1:1/x", "10.0.0.1:5000/x", "[::1]:1/x", "0x7f000001:1/x"] {
            let Err(Problem::OfJob(text)) = check(image, &Reach::default()) else { panic!("{image}") };
            assert!(text.starts_with(&format!("image {image}: jobs may not reach ")), "{text}");
            assert!(text.contains("--reach"), "{text}");
        }
        assert_eq!(check("127.0.0.1:1/x", &open), Ok(()));
        assert_eq!(check("busybox", &Reach::default()), Ok(()));
        assert_eq!(check("no-such-host.invalid/x", &open), Ok(()), "the engine will say so");
    }
}
