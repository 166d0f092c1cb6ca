//! The start of the engine.

use std::sync::Arc;

use berth_base::blocking::blocking;
use berth_node::Node;

use crate::{build, container::recover, engine::Engine};

/// Reads the containers of an earlier daemon back, and takes up what it left undone. `pods` is the
/// other edge's node.
///
/// # Errors
/// Their directory cannot be read.
pub async fn start(node: Arc<Node>, pods: Arc<Node>) -> anyhow::Result<Arc<Engine>> {
    let engine = Engine::new(node, pods)?;
    tokio::spawn(engine.name_server.clone().keep());
    recover::recover(&engine).await?;
    blocking(|| build::discard_left(&engine.node.host.layout))?;
    Ok(engine)
}
