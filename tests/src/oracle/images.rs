//! The images that both sides have.

use serde_json::json;

use crate::{Image, Layer, busybox};

/// The images of the tutorials, all of them Debian's busybox, as `docker save` writes them.
///
/// # Panics
/// There is no busybox.
pub fn archive() -> Vec<u8> {
    let layer = busybox().bytes();
    let config = json!({
        "Cmd": ["sh"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    });
    let image = Image::docker(&[(layer.clone(), layer.clone())], &config);
    let config = image.blobs.last().expect("the config is the last one");
    let names = ["busybox", "debian", "ubuntu", "alpine"].map(|name| format!("{name}:latest"));
    let manifest = json!([{ "Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"] }]);
    Layer::new()
        .file("config.json", config)
        .file("layer.tar", &layer)
        .file("manifest.json", manifest.to_string().as_bytes())
        .bytes()
}
