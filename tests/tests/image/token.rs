//! Credentials of a pull request: where they are sent, and where not.

use berth_proto::v1;
use berth_tests::{FakeRegistry, Image, Response};
use tonic::Code;

use crate::ready;

#[tokio::test]
async fn credentials_go_where_they_belong() {
    let (machine, _daemon, cri) = ready().await;
    let token_server = FakeRegistry::start(&machine, Image::busybox(), |request| {
        let basic = request.header("authorization") == Some("Basic dTpw");
        let body = if basic {
            br#"{"token":"the-token"}"#.to_vec()
        } else {
            br#"{"access_token":"anonymous"}"#.to_vec()
        };
        Some(Response { status: 200, body, ..Response::default() })
    });
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"s\",scope=\"repository:a:pull\"",
        token_server.host
    );
    let bearer = FakeRegistry::start(&machine, Image::busybox(), move |request| {
        let known = request.header("authorization") == Some("Bearer the-token");
        let headers = vec![("www-authenticate".to_owned(), challenge.clone())];
        (!known).then(|| Response { status: 401, headers, ..Response::default() })
    });
    let basic = FakeRegistry::start(&machine, Image::busybox(), |request| {
        let known = request.header("authorization") == Some("Basic dTpw");
        let headers = vec![("www-authenticate".to_owned(), "Basic realm=\"x\"".to_owned())];
        (!known).then(|| Response { status: 401, headers, ..Response::default() })
    });
    let pull = async |host: &str, auth: v1::AuthConfig| {
        let image = Some(v1::ImageSpec { image: format!("{host}/a:1"), ..Default::default() });
        let request = v1::PullImageRequest { image, auth: Some(auth), sandbox_config: None };
        cri.images.clone().pull_image(request).await.map(|answer| answer.into_inner().image_ref)
    };
    let password =
        v1::AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
    let encoded = v1::AuthConfig { auth: "dTpw".into(), ..Default::default() };
    for host in [&bearer.host, &basic.host] {
        assert_eq!(
            pull(host, v1::AuthConfig::default()).await.unwrap_err().code(),
            Code::Unauthenticated
        );
        assert!(
            pull(host, password.clone()).await.is_ok() && pull(host, encoded.clone()).await.is_ok()
        );
        // An image that is on the node is refused as well to a caller without credentials.
        assert_eq!(
            pull(host, v1::AuthConfig::default()).await.unwrap_err().code(),
            Code::Unauthenticated
        );
        let elsewhere =
            v1::AuthConfig { server_address: "other.example".into(), ..password.clone() };
        cri.remove_image(&format!("{host}/a:1")).await.unwrap();
        assert_eq!(pull(host, elsewhere).await.unwrap_err().code(), Code::Unauthenticated);
    }
    assert!(
        token_server.requests().iter().any(|request| request.path.contains("service=s")
            && request.path.contains("scope=repository"))
    );
}
