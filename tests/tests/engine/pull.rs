//! `docker pull` beyond one tag, and `docker search`.

use berth_tests::{
    Capability, DockerRegistry, FakeRegistry, Image, Response, digest, skip_without,
};
use serde_json::json;

use crate::{fail, ready, succeed};

#[tokio::test]
async fn all_tags_of_a_repository_are_pulled() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    let registry = DockerRegistry::start(&machine).await;
    let image = Image::busybox();
    let name = registry.push(&machine, "tools/box", "1", &image);
    registry.push(&machine, "tools/box", "2", &image);
    let repository = name.trim_end_matches(":1");
    let pulled = succeed(&machine, &["pull", "--all-tags", repository]);
    for tag in ["1", "2"] {
        assert!(pulled.contains(&format!("{tag}: Pulling from tools/box")), "{pulled}");
        let listed = engine.get(&format!("/images/{repository}:{tag}/json")).await;
        assert_eq!(listed["Id"], image.id);
    }
    let end = format!("Status: Downloaded newer image for {repository}\n{repository}");
    assert!(pulled.ends_with(&end), "{pulled}");
    let again = succeed(&machine, &["pull", "--all-tags", repository]);
    let end = format!("Status: Image is up to date for {repository}\n{repository}");
    assert!(again.ends_with(&end), "{again}");
    assert_eq!(again.matches("Digest: ").count(), 2, "{again}");

    let by_digest = format!("{repository}@{}", digest(&image.manifest));
    let pulled = succeed(&machine, &["pull", &by_digest]);
    assert!(pulled.starts_with(&format!("{by_digest}: Pulling from tools/box\n")), "{pulled}");
    let unknown = fail(&machine, &["pull", "--all-tags", &format!("{}/nope", registry.host)]);
    assert!(unknown.contains(&format!("repository {}/nope not found", registry.host)), "{unknown}");
    let unknown = fail(&machine, &["pull", &format!("{repository}:3")]);
    assert!(unknown.contains(&format!("manifest for {repository}:3 not found")), "{unknown}");
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_index_is_searched() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, _) = ready().await;
    let of = |name: &str, stars: i64| json!({ "name": name, "star_count": stars, "is_official": stars > 5, "description": "d" });
    let results = json!({ "num_results": 2, "results": [of("box", 7), of("other/box", 1)] });
    let registry = FakeRegistry::start(&machine, Image::busybox(), move |request| {
        let body = results.to_string().into_bytes();
        let is_search = request.path == "/v1/search?q=box&n=10";
        is_search.then(|| Response { status: 200, body, ..Response::default() })
    });
    let term = format!("{}/box", registry.host);
    let all = ["search", "--limit", "10", "--format", "{{.Name}} {{.StarCount}}", &term];
    assert_eq!(succeed(&machine, &all), "box 7\nother/box 1");
    let official = [&all[..5], &["--filter", "is-official=true", &term]].concat();
    assert_eq!(succeed(&machine, &official), "box 7");
    let stars = [&all[..5], &["--filter", "stars=8", &term]].concat();
    assert_eq!(succeed(&machine, &stars), "");
    // Nobody is there.
    let path = "/images/search?term=127.0.0.1:1/box";
    let (status, answer) = engine.request("GET", path, None).await;
    let message = answer["message"].as_str().unwrap();
    assert!(
        status == 500 && message.contains("http://127.0.0.1:1/v1/search?q=box&n=25"),
        "{message}"
    );
    let (status, _) = engine.request("GET", "/images/search?term=a&limit=101", None).await;
    assert_eq!(status, 400);
}
