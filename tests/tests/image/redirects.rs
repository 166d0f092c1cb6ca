//! A registry that redirects a pull: which credentials, headers and certificates the other server
//! gets to see.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

use berth_proto::v1;
use berth_tests::{
    Cri, DockerRegistry, FakeRegistry, Image, Machine, Request, Response, certificate,
};
use tonic::Code;

/// What a test's registry gets: user and password by Basic authentication, and a header of
/// hosts.toml.
const SECRETS: [&str; 3] = ["dTpw", "refresh-me", "for-the-registry-alone"];

async fn start() -> (Machine, berth_tests::Daemon, Cri) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    (machine, daemon, cri)
}

fn headers(all: &[(&str, String)]) -> Vec<(String, String)> {
    all.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn redirect(status: u16, location: String) -> Response {
    Response { status, headers: headers(&[("location", location)]), ..Response::default() }
}

/// 401 for requests without the credentials `u:p`.
fn challenge(request: &Request, challenge: &str) -> Option<Response> {
    let known = request.header("authorization") == Some("Basic dTpw");
    let headers = headers(&[("www-authenticate", challenge.to_owned())]);
    (!known).then(|| Response { status: 401, headers, ..Response::default() })
}

fn write_hosts(machine: &Machine, host: &str, text: &str) {
    let directory = machine.path("certs.d").join(host);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), text).unwrap();
}

/// A hosts.toml that adds a header.
async fn pull(
    machine: &Machine,
    cri: &Cri,
    host: &str,
    auth: v1::AuthConfig,
) -> Result<(), tonic::Status> {
    let header = format!("server = \"http://{host}\"\n[header]\nx-key = \"{}\"\n", SECRETS[2]);
    write_hosts(machine, host, &header);
    let image = Some(v1::ImageSpec { image: format!("{host}/a:1"), ..Default::default() });
    let request = v1::PullImageRequest { image, auth: Some(auth), sandbox_config: None };
    cri.images.clone().pull_image(request).await.map(drop)
}

fn password() -> v1::AuthConfig {
    v1::AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() }
}

fn assert_sees_nothing(server: &FakeRegistry) {
    for asked in server.requests() {
        let told = format!("{asked:?}");
        assert!(SECRETS.iter().all(|secret| !told.contains(secret)), "{told}");
    }
}

#[tokio::test]
async fn a_server_that_a_registry_redirects_to_cannot_ask_for_its_credentials() {
    let (machine, _daemon, cri) = start().await;
    for part in ["/manifests/", "/blobs/"] {
        for scheme in ["Basic", "Bearer"] {
            let tokens = FakeRegistry::start(&machine, Image::busybox(), |_| {
                Some(Response {
                    status: 200,
                    body: br#"{"token":"x"}"#.to_vec(),
                    ..Response::default()
                })
            });
            let asks = format!("{scheme} realm=\"http://{}/token\"", tokens.host);
            let foreign = FakeRegistry::start(&machine, Image::busybox(), move |request| {
                challenge(request, &asks)
            });
            let location = format!("http://{}", foreign.host);
            let home = FakeRegistry::start(&machine, Image::busybox(), move |request| {
                let elsewhere = || redirect(307, format!("{location}{}", request.path));
                challenge(request, "Basic realm=\"x\"")
                    .or_else(|| request.path.contains(part).then(elsewhere))
            });
            let refused = pull(&machine, &cri, &home.host, password()).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
            let told =
                format!("http://{} redirects to http://{}, which asks", home.host, foreign.host);
            assert!(refused.message().contains(&told), "{refused}");
            assert!(
                foreign.requests().iter().any(|request| request.path.contains(part)),
                "it was asked without them"
            );
            assert_sees_nothing(&foreign);
            assert!(tokens.requests().is_empty(), "{:?}", tokens.requests());
        }
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn what_an_object_store_serves_comes_without_credentials_and_resumes() {
    let (machine, _daemon, cri) = start().await;
    let image = Image::busybox();
    let layer = image.blobs[0].clone();
    let broken = AtomicBool::new(false);
    let store = FakeRegistry::start(&machine, image.clone(), move |request| {
        let first = request.path.contains(&berth_tests::digest(&layer))
            && !broken.swap(true, Ordering::Relaxed);
        first.then(|| Response {
            status: 200,
            body: layer.clone(),
            cut_after: Some(100_000),
            ..Response::default()
        })
    });
    let location = format!("http://{}/bucket", store.host);
    let home = FakeRegistry::start(&machine, image, move |request| {
        // A redirect within the same origin is followed with credentials and headers.
        let moved = || redirect(302, format!("/moved{}", request.path));
        let elsewhere = || redirect(307, format!("{location}{}?signature=s", request.path));
        challenge(request, "Basic realm=\"x\"")
            .or_else(|| request.path.starts_with("/v2/").then(moved))
            .or_else(|| request.path.contains("/blobs/").then(elsewhere))
    });
    pull(&machine, &cri, &home.host, password()).await.unwrap();
    assert_sees_nothing(&store);
    let resumed = |request: &Request| {
        request.header("range").is_some_and(|range| range.starts_with("bytes=100000-"))
    };
    assert!(store.requests().iter().any(resumed), "{:?}", store.requests());
    let own = home.requests();
    assert!(own.iter().all(|request| request.header("x-key") == Some(SECRETS[2])), "{own:?}");
    // A URL of an object store is signed for one use, so each attempt starts at the registry again.
    let begun = own
        .iter()
        .filter(|request| request.path.starts_with("/moved") && request.path.contains("/blobs/"))
        .count();
    assert_eq!(begun, store.requests().len());
}

#[tokio::test]
async fn the_way_back_from_elsewhere_has_no_credentials_and_circles_end() {
    let (machine, _daemon, cri) = start().await;
    let back = FakeRegistry::start(&machine, Image::busybox(), |request| {
        let host = request.path.split("host=").nth(1)?;
        Some(redirect(307, format!("http://{host}/chosen/by/another")))
    });
    let location = format!("http://{}", back.host);
    let home = FakeRegistry::start(&machine, Image::busybox(), move |request| {
        let elsewhere = || {
            redirect(
                307,
                format!("{location}/?host={}", request.header("host").unwrap_or_default()),
            )
        };
        challenge(request, "Basic realm=\"x\"").or_else(|| Some(elsewhere()))
    });
    let refused = pull(&machine, &cri, &home.host, password()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    let chosen: Vec<Request> =
        home.requests().into_iter().filter(|request| request.path.starts_with("/chosen")).collect();
    assert!(
        !chosen.is_empty()
            && chosen.iter().all(|request| request.header("authorization").is_none()),
        "{chosen:?}"
    );

    let circle = FakeRegistry::start(&machine, Image::busybox(), |request| {
        Some(redirect(301, request.path.clone()))
    });
    let endless = pull(&machine, &cri, &circle.host, password()).await.unwrap_err();
    assert!(endless.message().contains("more than 10 redirects"), "{endless}");
    assert_eq!(circle.requests().len(), 11);
    for nonsense in ["file:///etc/passwd", "http://", "ftp://127.0.0.1/x"] {
        let server = FakeRegistry::start(&machine, Image::busybox(), |_| {
            Some(redirect(302, nonsense.into()))
        });
        let refused = pull(&machine, &cri, &server.host, password()).await.unwrap_err();
        assert!(refused.message().contains("no http or https URL"), "{nonsense}: {refused}");
    }
}

#[tokio::test]
async fn a_token_server_that_redirects_elsewhere_takes_no_credentials_along() {
    let (machine, _daemon, cri) = start().await;
    let thief = FakeRegistry::start(&machine, Image::busybox(), |_| {
        Some(Response { status: 200, body: br#"{"token":"x"}"#.to_vec(), ..Response::default() })
    });
    let location = format!("http://{}/token", thief.host);
    // An identity token is sent in the form of a POST, which a 307 would repeat at the other
    // server.
    let tokens = FakeRegistry::start(&machine, Image::busybox(), move |_| {
        Some(redirect(307, location.clone()))
    });
    let asks = format!("Bearer realm=\"http://{}/token\"", tokens.host);
    let home =
        FakeRegistry::start(&machine, Image::busybox(), move |request| challenge(request, &asks));
    let identity = v1::AuthConfig { identity_token: SECRETS[1].into(), ..Default::default() };
    for auth in [password(), identity] {
        let refused = pull(&machine, &cri, &home.host, auth).await.unwrap_err();
        assert!(refused.message().contains(&tokens.host), "{refused}");
    }
    assert_eq!(
        tokens
            .requests()
            .iter()
            .filter(|request| format!("{request:?}").contains(SECRETS[1]))
            .count(),
        1
    );
    assert!(
        tokens.requests().iter().all(|request| request.header("x-key").is_none()),
        "another origin: {:?}",
        tokens.requests()
    );
    assert_sees_nothing(&thief);
}

#[tokio::test]
async fn a_registry_over_tls_cannot_have_credentials_sent_in_clear_text() {
    let (machine, _daemon, cri) = start().await;
    let tokens = FakeRegistry::start(&machine, Image::busybox(), |_| {
        Some(Response { status: 200, body: br#"{"token":"x"}"#.to_vec(), ..Response::default() })
    });
    let realm = format!("http://{}/token", tokens.host);
    let (registry, authority) = DockerRegistry::start_tls_asking(&machine, &realm).await;
    write_hosts(
        &machine,
        &registry.host,
        &format!("server = \"https://{}\"\nca = {authority:?}\n", registry.host),
    );
    let image =
        Some(v1::ImageSpec { image: format!("{}/a:1", registry.host), ..Default::default() });
    let request = v1::PullImageRequest { image, auth: Some(password()), sandbox_config: None };
    let refused = cri.images.clone().pull_image(request).await.unwrap_err();
    assert!(
        refused.code() == Code::Unauthenticated && refused.message().contains("not sent over http"),
        "{refused}"
    );
    assert!(tokens.requests().is_empty(), "{:?}", tokens.requests());
    // A client without a certificate is served as before.
    cri.pull(&format!("{}/a:1", registry.host)).await.unwrap_err();
    assert_eq!(tokens.requests().len(), 1);
}

#[tokio::test]
async fn the_nodes_certificate_is_shown_to_its_own_registry_alone() {
    let (machine, _daemon, cri) = start().await;
    let (own, key) = certificate(&machine.path("node"));
    let pem = [fs::read(&own).unwrap(), fs::read(&key).unwrap()].concat();
    fs::write(machine.path("both.pem"), &pem).unwrap();
    let (closed, authority) = DockerRegistry::start_tls_with(&machine, Some(&own)).await;
    let name = closed.push_tls_as(&machine, Some(&pem), "a", ("1", &Image::busybox()));
    let trust = format!("ca = {authority:?}\nclient = {:?}\n", machine.path("both.pem"));
    write_hosts(&machine, &closed.host, &format!("server = \"https://{}\"\n{trust}", closed.host));
    cri.pull(&name).await.unwrap();
    cri.remove_image(&name).await.unwrap();

    let location = format!("https://{}", closed.host);
    let home = FakeRegistry::start(&machine, Image::busybox(), move |request| {
        Some(redirect(307, format!("{location}{}", request.path)))
    });
    write_hosts(&machine, &home.host, &format!("server = \"http://{}\"\n{trust}", home.host));
    let refused = cri.pull(&format!("{}/a:1", home.host)).await.unwrap_err();
    assert!(refused.message().starts_with("RegistryUnavailable"), "{refused}");
}
