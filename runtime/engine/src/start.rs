//! The start of the engine.

use std::sync::Arc;

use berth_node::Node;

use crate::{container::recover, engine::Engine};

/// Reads the containers of an earlier daemon back, and takes up what it left undone. `pods` is the
/// other edge's node.
///
/// # Errors
/// Their directory cannot be read.
pub async fn start(node: Arc<Node>, pods: Arc<Node>) -> anyhow::Result<Arc<Engine>> {
    let engine = Engine::new(node, pods)?;
    recover::recover(&engine).await?;
    Ok(engine)
}
