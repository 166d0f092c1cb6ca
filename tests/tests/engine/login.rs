//! `docker login`: the registry is asked whether it accepts the credentials, which the client keeps.

use berth_tests::{Capability, FakeRegistry, Image, Response, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready, succeed};

#[tokio::test]
async fn credentials_are_checked_by_the_registry_and_used_by_the_next_pull() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    let registry = FakeRegistry::start(&machine, Image::busybox(), |request| {
        let headers = vec![("www-authenticate".to_owned(), "Basic realm=\"x\"".to_owned())];
        match request.header("authorization") {
            // u:p
            Some("Basic dTpw") if request.path == "/v2/" => {
                Some(Response { status: 200, ..Response::default() })
            }
            Some("Basic dTpw") => None,
            _ => Some(Response { status: 401, headers, ..Response::default() }),
        }
    });
    let host = &registry.host;
    let name = format!("{host}/box:1");
    fail(&machine, &["pull", &name]);
    let refused = fail(&machine, &["login", "--username", "u", "--password", "wrong", host]);
    let message =
        format!("login attempt to http://{host}/v2/ failed with status: 401 Unauthorized");
    assert!(refused.ends_with(&format!("Error response from daemon: {message}")), "{refused}");
    let accepted = succeed(&machine, &["login", "--username", "u", "--password", "p", host]);
    assert!(accepted.ends_with("Login Succeeded"), "{accepted}");
    succeed(&machine, &["pull", "--quiet", &name]);

    let auth = |password: &str, address: &str| json!({ "username": "u", "password": password, "email": null, "serveraddress": address });
    let answer = engine.request("POST", "/auth", Some(auth("p", &format!("http://{host}")))).await;
    assert_eq!(answer, (200, json!({ "IdentityToken": "", "Status": "Login Succeeded" })));
    let answer = engine.request("POST", "/auth", Some(auth("x", host))).await;
    assert_eq!(answer, (500, json!({ "message": message })));
    for (address, status) in [("a b", 400), ("..", 400), ("127.0.0.1:1", 500)] {
        let (answered, text) = engine.request("POST", "/auth", Some(auth("p", address))).await;
        assert_eq!(answered, status, "{address}: {text}");
    }
    let (status, _) = engine.request("POST", "/auth", Some(Value::from(1))).await;
    assert_eq!(status, 400);
    machine.assert_clean().await;
}
