//! Which certificates are good, what is said of the others, how a renewed one comes into use, and that links, volumes
//! and uploads have one answer to that, also behind a proxy.

use std::fs;
use std::io::Write;
use std::net::{Shutdown as Half, TcpListener};
use std::path::Path;

use phalanx::base::shutdown::Shutdown;
use phalanx::executor::volumes::{Hub, VolumeLoader};
use phalanx::net::http::client::{HttpClient, HttpSettings};
use phalanx::net::proxy::{Proxies, Proxy};
use phalanx::net::reach::Reach;
use phalanx::net::tls::{Roots, Trust};
use phalanx::protocol::{SingleFileVolume, Volume};
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{ClientTls, ServerTls, SocketLimits, TransportError};

use crate::testkit::http::{Reply, Server, loopback};
use crate::testkit::job::Bench;
use crate::testkit::threads::NoThreads;
use crate::testkit::transport::{Certificates, accept, background, dial_ws, join, raw_client, read_head};
use crate::testkit::wait::far;

/// As `openssl req -x509` makes it: marked as an authority.
fn self_signed(folder: &Path, change: impl Fn(&mut rcgen::CertificateParams)) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    certificate.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    certificate.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    change(&mut certificate);
    fs::write(folder.join("cert.pem"), certificate.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

fn server(folder: &Path) -> ServerTls {
    ServerTls::from_files(&folder.join("cert.pem"), &folder.join("key.pem")).unwrap()
}

/// One connection to a server with this certificate, by this name.
fn dialled(server: &ServerTls, client: &ClientTls, host: &str) -> Result<(), TransportError> {
    let listener = WsListener::bind("127.0.0.1:0", Some(server.clone())).unwrap();
    let url = format!("wss://{host}:{}", listener.local_addr().port());
    // Whether the server has a client that goes away is not its fault.
    let serving = background("t-accept", move || drop(accept(&listener, &SocketLimits::default(), |_| Ok(()))));
    let made = dial_ws(&WsDialer::new(client.clone()), &url, &SocketLimits::default()).map(drop);
    join(serving);
    made
}

#[test]
fn a_self_signed_certificate_that_is_trusted_is_good_although_it_is_marked_as_an_authority() {
    let _threads = NoThreads::expected();
    let folder = tempfile::tempdir().unwrap();
    self_signed(folder.path(), |_| {});
    let client = ClientTls::from_ca_file(&folder.path().join("cert.pem")).unwrap();
    dialled(&server(folder.path()), &client, "localhost").unwrap();
    let error = dialled(&server(folder.path()), &client, "127.0.0.1").unwrap_err().to_string();
    let says = "its certificate is for localhost and not for 127.0.0.1; a good one names 127.0.0.1, or give the name";
    assert!(error.contains(says), "{error}");
}

#[test]
fn what_is_wrong_with_a_trusted_certificate_is_said_as_of_any_other() {
    let _threads = NoThreads::expected();
    type Change = fn(&mut rcgen::CertificateParams);
    let over: Change = |certificate| certificate.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let early: Change = |certificate| certificate.not_before = rcgen::date_time_ymd(2200, 1, 1);
    let client: Change =
        |certificate| certificate.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    for (change, says) in [
        (over, "its certificate ended on 2020-01-01, "),
        (early, "its certificate begins on 2200-01-01"),
        (client, "extended key usage serverAuth"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        self_signed(folder.path(), change);
        let trusting = ClientTls::from_ca_file(&folder.path().join("cert.pem")).unwrap();
        let error = dialled(&server(folder.path()), &trusting, "localhost").unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn who_is_not_trusted_is_named_with_the_flag_that_would_help() {
    let _threads = NoThreads::expected();
    let folder = tempfile::tempdir().unwrap();
    self_signed(folder.path(), |_| {});
    let error = dialled(&server(folder.path()), &ClientTls::public(), "localhost").unwrap_err().to_string();
    assert!(error.contains("is self-signed and not among the trusted ones") && error.contains("--tls-ca"), "{error}");
    let certificates = Certificates::new();
    let error = dialled(&certificates.server(), &ClientTls::public(), "localhost").unwrap_err().to_string();
    assert!(error.contains("of the authority \"test authority\", which is not trusted here"), "{error}");
    // Beside the public ones, as for volumes.
    let trust = Trust { roots: Roots::Bundled, ca: Some(certificates.path("ca.pem")), ..Trust::default() };
    dialled(&certificates.server(), &ClientTls::trusting(trust).unwrap(), "localhost").unwrap();
    let nobody = ClientTls::trusting(Trust { roots: Roots::None, ..Trust::default() });
    assert!(nobody.is_err());
}

#[test]
fn a_renewed_certificate_is_used_from_a_reload_on_and_one_that_does_not_fit_is_not() {
    let _threads = NoThreads::expected();
    let (folder, next) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let renew = || self_signed(next.path(), |_| {});
    let take = |name: &str| fs::copy(next.path().join(name), folder.path().join(name)).unwrap();
    let trusting = |folder: &Path| ClientTls::from_ca_file(&folder.join("cert.pem")).unwrap();
    self_signed(folder.path(), |_| {});
    let (serving, old) = (server(folder.path()), trusting(folder.path()));
    dialled(&serving, &old, "localhost").unwrap();
    renew();
    take("cert.pem");
    let error = serving.reload().unwrap_err().to_string();
    assert!(error.contains("key.pem: does not fit the certificate"), "{error}");
    dialled(&serving, &old, "localhost").unwrap();
    take("key.pem");
    let said = serving.reload().unwrap();
    assert!(said.starts_with("read again: the server certificate ") && said.contains(", good until "), "{said}");
    dialled(&serving, &trusting(next.path()), "localhost").unwrap();
    assert!(dialled(&serving, &old, "localhost").is_err());
    // A client whose file of trusted ones is renewed, too.
    let client = trusting(folder.path());
    renew();
    take("cert.pem");
    take("key.pem");
    serving.reload().unwrap();
    assert!(dialled(&serving, &client, "localhost").is_err());
    client.reload().unwrap();
    dialled(&serving, &client, "localhost").unwrap();
}

fn load(settings: HttpSettings, url: String, bench: &Bench) -> Result<String, String> {
    let workspace = bench.workspace();
    let loader = VolumeLoader::new(Shutdown::new(), Hub::default(), settings);
    let volume = SingleFileVolume { url, relative_path: "f".into() };
    loader.load(&Volume::SingleFile(volume), &workspace, far()).map_err(|error| error.to_string())?;
    Ok(fs::read_to_string(workspace.volume().join("f")).unwrap())
}

#[test]
fn volumes_come_from_a_server_with_a_private_certificate_if_it_is_trusted() {
    let bench = Bench::new();
    let server = Server::start_tls(|_| Reply::ok("hello"));
    let trusted = HttpSettings { tls: server.trusted(), ..loopback().into() };
    assert_eq!(load(trusted, server.url("/f"), &bench).unwrap(), "hello");
    let error = load(loopback().into(), server.url("/f"), &bench).unwrap_err();
    assert!(error.contains("self-signed") && error.contains("--tls-ca"), "{error}");
    drop(server);
    bench.assert_clean();
}

#[test]
fn volumes_come_through_a_proxy_that_knows_the_names() {
    let bench = Bench::new();
    let proxy = Server::start(|request| Reply::ok(request.path.clone()));
    let by = |user: &str| {
        let url = proxy.url("").replace("//", &format!("//{user}"));
        HttpSettings { proxies: Proxies::all(Proxy::parse(&url).unwrap()), ..HttpSettings::from(Reach::default()) }
    };
    assert_eq!(load(by(""), "http://files.test/f?a=b".into(), &bench).unwrap(), "http://files.test/f?a=b");
    assert_eq!(load(by("me:s3cret@"), "http://files.test:81/f".into(), &bench).unwrap(), "http://files.test:81/f");
    let seen = proxy.seen();
    assert_eq!((seen[0].header("host"), seen[0].header("proxy-authorization")), (Some("files.test"), None));
    assert_eq!(seen[1].header("proxy-authorization"), Some("Basic bWU6czNjcmV0"));
    // Its way is the operator's; where a job leads it is not.
    for url in ["http://127.0.0.1/f", "http://localhost/f", "http://169.254.169.254/latest"] {
        let error = load(by(""), url.into(), &bench).unwrap_err();
        assert!(error.contains("jobs may not reach "), "{error}");
    }
    assert_eq!(proxy.seen().len(), 2);
    drop(proxy);
    let gone = HttpSettings {
        proxies: Proxies::all(Proxy::parse("http://me:s3cret@127.0.0.1:1").unwrap()),
        ..HttpSettings::from(Reach::default())
    };
    let error =
        HttpClient::within(gone, Shutdown::new()).get("http://files.test/", &[], far()).unwrap_err().to_string();
    assert!(error.contains("proxy http://127.0.0.1:1: ") && !error.contains("s3cret"), "{error}");
    bench.assert_clean();
}

#[test]
fn https_goes_through_a_tunnel_of_the_proxy() {
    let bench = Bench::new();
    let server = Server::start_tls(|_| Reply::ok("by tunnel"));
    let to = server.url("").trim_start_matches("https://").replace("localhost", "127.0.0.1");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let tunnel = background("t-proxy", move || {
        let (mut client, _) = listener.accept().unwrap();
        let head = read_head(&mut client);
        let server = raw_client(to.parse().unwrap());
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let answering = background("t-back", move || {
            let _ = std::io::copy(&mut answers, &mut back);
            let _ = back.shutdown(Half::Write);
        });
        let (mut client, mut server) = (client, server);
        let _ = std::io::copy(&mut client, &mut server);
        let _ = server.shutdown(Half::Both);
        join(answering);
        head
    });
    let settings = HttpSettings { tls: server.trusted(), proxies: Proxies::all(proxy), ..loopback().into() };
    assert_eq!(load(settings, server.url("/f"), &bench).unwrap(), "by tunnel");
    let head = join(tunnel);
    let target = server.url("").trim_start_matches("https://").to_owned();
    assert!(head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\n")), "{head}");
    drop(server);
    bench.assert_clean();
}
