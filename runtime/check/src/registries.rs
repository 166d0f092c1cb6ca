//! The registries that `certs.d` names.

use std::path::Path;

use berth_image::{Reached, reach_registries};

use crate::finding::Finding;

pub(crate) async fn ask(config_path: &Path) -> Vec<Reached> {
    reach_registries(config_path).await
}

pub(crate) fn judge(reached: &Reached) -> Finding {
    let Reached { host, endpoint, outcome } = reached;
    match outcome {
        Ok(()) => Finding::ok("registry", format!("{host} by {endpoint}")),
        Err(error) => Finding::warning(
            "registry",
            format!("{host}: {error}"),
            format!("curl -v {endpoint}/, or mend its hosts.toml"),
        ),
    }
}
