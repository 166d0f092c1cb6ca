//! Credentials of the node itself, from docker's config.json and from the kubelet's plugins, and
//! which server gets to see them.

use std::{fs, os::unix::fs::PermissionsExt};

use berth_proto::v1;
use berth_tests::{Cri, DockerRegistry, FakeRegistry, Image, Machine, Response, certificate};
use serde_json::json;
use tonic::Code;

async fn start() -> (Machine, berth_tests::Daemon, Cri) {
    let machine = Machine::new();
    let daemon = machine.start().await;
    let cri = daemon.cri();
    (machine, daemon, cri)
}

/// A rule that serves requests with the credentials `u:p` and refuses all others.
fn basic(machine: &Machine) -> FakeRegistry {
    FakeRegistry::start(machine, Image::busybox(), |request| {
        let known = request.header("authorization") == Some("Basic dTpw");
        let headers = vec![("www-authenticate".to_owned(), "Basic realm=\"x\"".to_owned())];
        (!known).then(|| Response { status: 401, headers, ..Response::default() })
    })
}

#[tokio::test]
async fn pulls_that_bring_none_use_those_of_the_node() {
    let (machine, _daemon, cri) = start().await;
    let registry = basic(&machine);
    let host = &registry.host;
    let write = |config: serde_json::Value| {
        fs::write(machine.path("auth.json"), config.to_string()).unwrap()
    };
    let pull = async |path: &str| cri.pull(&format!("{host}/{path}:1")).await;
    assert_eq!(pull("a").await.unwrap_err().code(), Code::Unauthenticated);
    write(json!({ "auths": { format!("http://{host}/v2/"): { "auth": "dTpw" } } }));
    pull("a").await.unwrap();
    // Credentials for the images of one team only.
    write(json!({
        "auths": { format!("{host}/team"): { "username": "u", "password": "p" },
            host: { "auth": "dTp4" } },
    }));
    pull("team/b").await.unwrap();
    assert_eq!(pull("other/b").await.unwrap_err().code(), Code::Unauthenticated);
    // Credentials of a request are used alone, without those of the node.
    let image = Some(v1::ImageSpec { image: format!("{host}/team/c:1"), ..Default::default() });
    let auth = Some(v1::AuthConfig {
        username: "u".into(),
        password: "wrong".into(),
        ..Default::default()
    });
    let request = v1::PullImageRequest { image, auth, sandbox_config: None };
    assert_eq!(
        cri.images.clone().pull_image(request).await.unwrap_err().code(),
        Code::Unauthenticated
    );

    fs::create_dir(machine.path("bin")).unwrap();
    let helper = |name: &str, script: &str| {
        let path = machine.path("bin").join(format!("docker-credential-{name}"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    helper(
        "good",
        &format!(
            r#"read -r host; [ "$1 $host" = "get {host}" ] && echo '{{"ServerURL":"x","Username":"u","Secret":"p"}}'"#
        ),
    );
    helper("empty", "echo credentials not found in native keychain; exit 1");
    helper("broken", "echo the cloud is gone >&2; exit 7");
    helper("garbage", "echo hello");
    for (config, expected) in [
        (json!({ "credHelpers": { host: "good" }, "credsStore": "broken" }), Ok(())),
        (json!({ "credsStore": "good" }), Ok(())),
        (json!({ "credsStore": "empty" }), Err((Code::Unauthenticated, ""))),
        (
            json!({ "credsStore": "broken" }),
            Err((Code::FailedPrecondition, "exit status: 7: the cloud is gone")),
        ),
        (
            json!({ "credsStore": "garbage" }),
            Err((Code::FailedPrecondition, "docker-credential-garbage: its answer")),
        ),
        (
            json!({ "credsStore": "missing" }),
            Err((Code::FailedPrecondition, "docker-credential-missing")),
        ),
        (
            json!({ "credsStore": "../good" }),
            Err((Code::FailedPrecondition, "not the name of a credential helper")),
        ),
        (json!({ "auths": [] }), Err((Code::FailedPrecondition, "auth.json"))),
    ] {
        write(config.clone());
        let pulled = pull("d").await;
        match (pulled, expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err((code, what))) => {
                assert!(
                    error.code() == code && error.message().contains(what),
                    "{config}: {error}"
                );
            }
            (pulled, _) => panic!("{config}: {pulled:?}"),
        }
    }
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_identity_token_is_shown_to_the_token_server_alone() {
    let (machine, _daemon, cri) = start().await;
    let tokens = FakeRegistry::start(&machine, Image::busybox(), |request| {
        let granted = [
            "grant_type=refresh_token",
            "refresh_token=secret",
            "scope=repository%3Aa%3Apull",
            "service=s",
        ]
        .iter()
        .all(|field| request.body.contains(field));
        let status = if granted { 200 } else { 401 };
        Some(Response {
            status,
            body: br#"{"access_token":"issued"}"#.to_vec(),
            ..Response::default()
        })
    });
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"s\",scope=\"repository:a:pull\"",
        tokens.host
    );
    let registry = FakeRegistry::start(&machine, Image::busybox(), move |request| {
        let known = request.header("authorization") == Some("Bearer issued");
        let headers = vec![("www-authenticate".to_owned(), challenge.clone())];
        (!known).then(|| Response { status: 401, headers, ..Response::default() })
    });
    let pull = async |token: &str| {
        let image =
            Some(v1::ImageSpec { image: format!("{}/a:1", registry.host), ..Default::default() });
        let auth = Some(v1::AuthConfig { identity_token: token.to_owned(), ..Default::default() });
        cri.images
            .clone()
            .pull_image(v1::PullImageRequest { image, auth, sandbox_config: None })
            .await
    };
    assert_eq!(pull("stale").await.unwrap_err().code(), Code::Unauthenticated);
    pull("secret").await.unwrap();
    assert!(registry.requests().iter().all(|request| !format!("{request:?}").contains("secret")));
    machine.assert_clean().await;
}

#[tokio::test]
async fn a_node_shows_its_certificate_to_a_registry_that_asks_for_one() {
    let (machine, _daemon, cri) = start().await;
    let (own, key) = certificate(&machine.path("node"));
    let (registry, authority) = DockerRegistry::start_tls_with(&machine, Some(&own)).await;
    let pem = [fs::read(&own).unwrap(), fs::read(&key).unwrap()].concat();
    let name = registry.push_tls_as(&machine, Some(&pem), "a", ("1", &Image::busybox()));
    let directory = machine.path("certs.d").join(&registry.host);
    fs::create_dir_all(&directory).unwrap();
    // Docker's layout of client certificates.
    fs::copy(&authority, directory.join("ca.crt")).unwrap();
    let refused = cri.pull(&name).await.unwrap_err();
    // In TLS 1.3 the server refuses a client's certificate after the handshake. The client may be
    // writing by then, and then sees a closed connection instead.
    assert!(
        refused.code() == Code::Unknown && refused.message().starts_with("RegistryUnavailable"),
        "{refused}"
    );
    fs::copy(&own, directory.join("node.cert")).unwrap();
    let without_key = cri.pull(&name).await.unwrap_err();
    assert!(without_key.message().contains("node.key"), "{without_key}");
    fs::copy(&key, directory.join("node.key")).unwrap();
    cri.pull(&name).await.unwrap();
    cri.remove_image(&name).await.unwrap();
    // containerd's hosts.toml.
    fs::write(directory.join("both.pem"), pem).unwrap();
    let server = format!("server = \"https://{}\"\nca = {authority:?}\n", registry.host);
    for client in ["\"both.pem\"", "[[\"node.cert\", \"node.key\"]]"] {
        fs::write(directory.join("hosts.toml"), format!("{server}client = {client}\n")).unwrap();
        cri.pull(&name).await.unwrap();
        cri.remove_image(&name).await.unwrap();
    }
}

#[tokio::test]
async fn plugins_of_the_kubelet_are_asked_where_the_node_has_nothing_else() {
    let mut machine = Machine::new();
    let config = machine.path("providers.yaml");
    let programs = machine.path("providers");
    machine.config =
        format!("credential_providers = {{ config = {config:?}, bin_dir = {programs:?} }}");
    let daemon = machine.start().await;
    let cri = daemon.cri();
    let registry = basic(&machine);
    let name = |path: &str| format!("{}/{path}:1", registry.host);
    let missing = cri.pull(&name("a")).await.unwrap_err();
    assert!(
        missing.code() == Code::FailedPrecondition && missing.message().contains("providers.yaml"),
        "{missing}"
    );
    let write = |program: &str, patterns: &str| {
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
             - name: {program}\n  matchImages: [{patterns}]\n  defaultCacheDuration: 12h\n  args: [get]\n  \
             apiVersion: credentialprovider.kubelet.k8s.io/v1\n  env: [{{ name: WORD, value: p }}]\n"
        );
        fs::write(&config, text).unwrap();
    };
    fs::create_dir(&programs).unwrap();
    let script = format!(
        r#"#!/bin/sh
[ "$1" = get ] || exit 2
grep -q '"image":"{}"' || {{ echo "which image?" >&2; exit 3; }}
echo '{{"kind":"CredentialProviderResponse","cacheKeyType":"Registry","auth":{{"127.0.0.*:{}":{{"username":"u","password":"'$WORD'"}}}}}}'
"#,
        name("a"),
        registry.host.split(':').nth(1).unwrap()
    );
    let program = programs.join("good");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    write("good", "\"*.example.com\"");
    assert_eq!(cri.pull(&name("a")).await.unwrap_err().code(), Code::Unauthenticated);
    write("good", "\"127.*.0.1:*\"");
    cri.pull(&name("a")).await.unwrap();
    for (program, what) in
        [("good", "which image?"), ("absent", "absent"), ("../good", "not the name")]
    {
        write(program, "\"127.*.0.1:*\"");
        let error = cri.pull(&name("other")).await.unwrap_err();
        assert!(error.message().contains(what), "{program}: {error}");
    }
}
