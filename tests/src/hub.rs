//! docker.io, as a machine's daemon sees it: a registry on the machine's loopback interface.

use std::{fs, sync::Arc};

use crate::{
    image::Image,
    machine::Machine,
    registry::{FakeRegistry, Response, stored},
};

impl FakeRegistry {
    /// Serves these images under docker.io, each in a repository, as in `library/redis`, under every
    /// tag.
    ///
    /// # Panics
    /// The machine's certs.d cannot be written.
    pub fn hub(machine: &Machine, images: Vec<(&str, Image)>) -> Self {
        let images: Vec<(String, Arc<Image>)> = images
            .into_iter()
            .map(|(name, image)| (format!("/v2/{name}/"), Arc::new(image)))
            .collect();
        let nothing = Image {
            blobs: Vec::new(),
            manifest: Vec::new(),
            media_type: String::new(),
            id: String::new(),
        };
        let hub = Self::start(machine, nothing, move |request| {
            let asked = images.iter().find(|(path, _)| request.path.starts_with(path));
            let absent = || Response { status: 404, ..Response::default() };
            Some(asked.map_or_else(absent, |(_, image)| stored(request, image)))
        });
        let directory = machine.path("certs.d/docker.io");
        fs::create_dir_all(&directory).expect("make a directory");
        let hosts = format!("server = \"http://{}\"\n", hub.host);
        fs::write(directory.join("hosts.toml"), hosts).expect("write hosts.toml");
        hub
    }
}
