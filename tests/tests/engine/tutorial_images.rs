//! The verbs of images, as tutorials use them: search, pull, list, name, remove.

use berth_tests::{Capability, FakeRegistry, Image, debian, skip_without};

use crate::{fail, ready};

#[tokio::test]
async fn images_are_pulled_listed_named_and_removed() {
    if skip_without(Capability::DockerCli) {
        return;
    }
    let (machine, _daemon, _engine, _) = ready().await;
    let images = vec![("library/debian", debian::debian()), ("library/busybox", Image::busybox())];
    let _hub = FakeRegistry::hub(&machine, images);
    machine.docker_script("docker rmi -f $(docker images -qa)");
    let pulled = machine.docker_script("docker pull debian");
    for line in ["Using default tag: latest", "Digest: sha256:", "docker.io/library/debian:latest"]
    {
        assert!(pulled.contains(line), "{line}: {pulled}");
    }
    let again = machine.docker_script("docker pull debian:latest");
    assert!(again.contains("Status: Image is up to date for debian:latest"), "{again}");
    // The index is out of reach.
    let search = fail(&machine, &["search", "--limit", "5", "debian"]);
    assert!(search.contains("Error response from daemon: "), "{search}");

    machine.docker_script(
        "docker pull -q busybox:1; docker tag debian mine:v1; docker tag debian you/other",
    );
    let listed = machine.docker_script("docker images");
    assert!(listed.starts_with("REPOSITORY   TAG       IMAGE ID       CREATED "), "{listed}");
    let lists = machine.docker_script(
        "docker images -q | sort -u | wc -l; docker images -aq | wc -l
         docker image ls debian -q | wc -l; docker images -f dangling=true -q | wc -l
         docker image ls --format '{{.Repository}}:{{.Tag}}' | sort",
    );
    assert_eq!(lists, "2\n4\n1\n0\nbusybox:1\ndebian:latest\nmine:v1\nyou/other:latest");

    // By name, by digest, by a short id, by the whole one.
    let removed = machine.docker_script("docker image rm mine:v1");
    assert_eq!(removed, "Untagged: mine:v1");
    let id = machine.docker_script("docker images -q --no-trunc debian");
    let several = fail(&machine, &["rmi", &id]);
    assert!(
        several.contains("(must be forced) - image is referenced in multiple repositories"),
        "{several}"
    );
    let removed =
        machine.docker_script("docker rmi you/other; docker rmi $(docker images -q debian)");
    assert!(removed.contains("Untagged: debian:latest"), "{removed}");
    assert!(removed.contains("Untagged: debian@sha256:"), "{removed}");
    assert!(removed.contains(&format!("Deleted: {id}")), "{removed}");
    let removed = machine.docker_script(
        "docker image rm $(docker image ls --digests --format '{{.Repository}}@{{.Digest}}' busybox)",
    );
    assert!(removed.starts_with("Untagged: busybox@sha256:"), "{removed}");
    machine.docker_script("docker rmi $(docker images -qa)");
    assert_eq!(machine.docker_script("docker images -qa"), "");

    // A name that another image takes over leaves one without.
    machine.docker_script(
        "docker pull -q debian; docker pull -q busybox; docker run --name box debian touch /new
         docker tag debian app; docker commit box app; docker commit box app; docker rm box",
    );
    let listed = machine.docker_script("docker images -f dangling=true");
    assert!(listed.contains("<none>       <none>"), "{listed}");
    let pruned = machine.docker_script("docker image prune -f");
    assert!(pruned.contains("Total reclaimed space: "), "{pruned}");
    let df = machine.docker_script("docker system df");
    assert!(
        df.starts_with(
            "TYPE            TOTAL     ACTIVE    SIZE      RECLAIMABLE\nImages          3 "
        ),
        "{df}"
    );
    machine.docker_script("docker system prune -af --volumes; docker image prune -af");
    assert_eq!(machine.docker_script("docker images -qa"), "");
    machine.assert_clean().await;
}
