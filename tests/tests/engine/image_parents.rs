//! Images that were made of others: which are listed, and what goes with what.

use berth_tests::{Capability, Machine, skip_without};
use serde_json::{Value, json};

use crate::{fail, ready, succeed};

/// Commits a container that has done `script` to `image`, and returns the id of its image.
fn made_of(machine: &Machine, image: &str, script: &str) -> String {
    succeed(machine, &["run", "--name", "step", image, "sh", "-c", script]);
    let id = succeed(machine, &["commit", "step"]);
    succeed(machine, &["rm", "step"]);
    id
}

fn listed(machine: &Machine, options: &[&str]) -> Vec<String> {
    let shown = succeed(machine, &[&["images", "--no-trunc", "-q"], options].concat());
    shown.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn an_image_of_which_another_was_made_is_a_step_and_goes_with_it() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, daemon, engine, image) = ready().await;
    let one = made_of(&machine, &image, "echo 1 > /one");
    assert_eq!(listed(&machine, &["-f", "dangling=true"]), [one.as_str()]);
    let two = made_of(&machine, &one, "echo 2 > /two");
    succeed(&machine, &["tag", &two, "made"]);
    // The daemon knows it by its index.
    daemon.kill();
    let _daemon = machine.start().await;
    assert!(!listed(&machine, &[]).contains(&one));
    assert!(listed(&machine, &["-a"]).contains(&one));
    assert_eq!(listed(&machine, &["-f", "dangling=true"]), [""; 0]);
    succeed(&machine, &["image", "prune", "-f"]);
    let history = engine.get("/images/made/history").await;
    let ids: Vec<&str> =
        history.as_array().unwrap().iter().map(|step| step["Id"].as_str().unwrap()).collect();
    assert_eq!(ids[..2], [two.as_str(), one.as_str()]);
    let all = engine.get("/images/json?all=1").await;
    let entry = all.as_array().unwrap().iter().find(|entry| entry["Id"] == two.as_str()).unwrap();
    assert_eq!(entry["ParentId"], one.as_str());
    let tagged = &engine.get("/images/made/json").await["Metadata"]["LastTagTime"];
    assert!(tagged.as_str().unwrap().starts_with("20"), "{tagged}");

    let short = one.strip_prefix("sha256:").unwrap()[..12].to_owned();
    let refused = fail(&machine, &["rmi", "-f", &one]);
    let why = "(cannot be forced) - image has dependent child images";
    assert_eq!(
        refused,
        format!("Error response from daemon: conflict: unable to delete {short} {why}")
    );
    let (status, changes) = engine.request("DELETE", "/images/made", None).await;
    assert_eq!(status, 200);
    let deleted: Vec<&Value> =
        changes.as_array().unwrap().iter().filter_map(|change| change.get("Deleted")).collect();
    // Each with its layer, down to the image that has a name.
    assert_eq!((deleted.len(), deleted[0], deleted[2]), (4, &json!(two), &json!(one)));
    let base = engine.get(&format!("/images/{image}/json")).await["Id"].clone();
    assert_eq!(listed(&machine, &["-a"]), [base.as_str().unwrap()]);

    let one = made_of(&machine, &image, "echo 1 > /one");
    let two = made_of(&machine, &one, "echo 2 > /two");
    succeed(&machine, &["rmi", "--no-prune", &two]);
    assert_eq!(listed(&machine, &["-f", "dangling=true"]), [one]);
    succeed(&machine, &["image", "prune", "-f"]);
    assert_eq!(listed(&machine, &["-a"]), [base.as_str().unwrap()]);
    machine.assert_clean().await;
}

#[tokio::test]
async fn an_image_that_is_mounted_is_in_use() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, image) = ready().await;
    made_of(&machine, &image, "echo 1 > /one");
    let one = made_of(&machine, &image, "echo 1 > /one");
    succeed(&machine, &["tag", &one, "mounted"]);
    let mount = "type=image,source=mounted,target=/mnt";
    succeed(&machine, &["run", "-d", "--name", "c1", "--mount", mount, &image, "sleep", "1000"]);
    assert!(fail(&machine, &["rmi", "mounted"]).contains("must force"));
    assert!(fail(&machine, &["rmi", "-f", &one]).contains("is being used by running container"));
    succeed(&machine, &["image", "prune", "-af"]);
    assert_eq!(succeed(&machine, &["exec", "c1", "cat", "/mnt/one"]), "1");
    succeed(&machine, &["rm", "-f", "c1"]);
    succeed(&machine, &["rmi", "mounted"]);
    machine.assert_clean().await;
}
