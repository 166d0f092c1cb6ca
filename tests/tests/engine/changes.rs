//! `docker diff`.

use berth_tests::{Capability, skip_without};
use serde_json::json;

use crate::ready;

#[tokio::test]
async fn changes_are_listed_as_dockerd_lists_them() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, engine, image) = ready().await;
    let data = machine.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let script = "echo x > /etc/new; echo y >> /etc/passwd; rm /etc/group; mkdir -p /a/b; \
                  touch /data/own; touch /tmp/made; rm /tmp/made";
    let config = json!({ "Binds": [format!("{}:/data", data.display())] });
    let body = json!({ "Image": image, "Cmd": ["sh", "-c", script], "HostConfig": config });
    engine.create("c1", body).await;
    assert_eq!(engine.get("/containers/c1/changes").await, json!(null));
    engine.start("c1").await;
    assert_eq!(engine.wait("c1").await, 0);
    let output = machine.docker(&["diff", "c1"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    let expected = "A /a\nA /a/b\nA /data\nC /etc\nD /etc/group\nA /etc/new\nC /etc/passwd\n";
    assert_eq!(shown, expected);
    let (status, _) = engine.request("GET", "/containers/none/changes", None).await;
    assert_eq!(status, 404);
    engine.remove("c1").await;
    machine.assert_clean().await;
}
