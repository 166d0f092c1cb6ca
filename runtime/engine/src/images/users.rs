//! The containers that use an image: docker's, and those of pods, which docker does not show but must
//! not take the image from either.

use berth_image::{Image, Names};
use berth_node::container::{self, Container, MountSource};

use crate::{api::host_config::HostConfig, engine::Engine};

/// A container that uses an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// The beginning of its id, and its pod if it has one: what people can look for.
    pub name: String,
    pub is_running: bool,
    /// Whether it is started again from the image. One of a pod never is, nor one that has the image
    /// mounted, which it would miss.
    pub is_restartable: bool,
}

pub(super) fn users(engine: &Engine, image: &Image) -> Vec<User> {
    let own = engine.containers.all();
    let own = own.iter().filter_map(|container| {
        let record = container.record();
        let is_restartable = record.image_id == image.id.as_str();
        (is_restartable || mounts(engine, &record.host_config, image)).then(|| User {
            name: container.id[..12].to_owned(),
            is_running: container.state().is_active(),
            is_restartable,
        })
    });
    let names = engine.node.host.images.names(image);
    let of_pods = engine.pods.containers.all();
    let of_pods = of_pods.iter().filter(|container| uses(container, image, &names));
    own.chain(of_pods.map(|container| of_pod(engine, container))).collect()
}

/// Whether an image is mounted in a container of docker's.
fn mounts(engine: &Engine, host: &HostConfig, image: &Image) -> bool {
    let images = &engine.node.host.images;
    let mounted = host.mounts.iter().flatten().filter(|mount| mount.r#type == "image");
    mounted
        .filter_map(|mount| images.find(&mount.source).ok().flatten())
        .any(|it| it.id == image.id)
}

/// Whether a pod's container runs on the image, or has it mounted.
fn uses(container: &Container, image: &Image, names: &Names) -> bool {
    let id = image.id.as_str();
    container.meta.image_id == id
        || container.meta.config.mounts.iter().any(|mount| match &mount.source {
            MountSource::Image { image_ref, .. } => {
                image_ref == id || names.digests.contains(image_ref)
            }
            MountSource::Host(_) => false,
        })
}

fn of_pod(engine: &Engine, container: &Container) -> User {
    let id = container.meta.id.as_str();
    let sandbox = engine.pods.sandboxes.find(container.meta.sandbox.as_str());
    let pod = sandbox.map_or_else(
        |_| container.meta.sandbox.to_string(),
        |sandbox| format!("{}/{}", sandbox.meta.config.namespace, sandbox.meta.config.name),
    );
    User {
        name: format!("{} of pod {pod}", id.get(..12).unwrap_or(id)),
        is_running: !matches!(
            container.state(),
            container::State::Created | container::State::Exited { .. }
        ),
        is_restartable: false,
    }
}
