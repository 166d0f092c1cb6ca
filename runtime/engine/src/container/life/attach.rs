//! Clients that see what a run writes, and type into it.

use berth_base::error::Error;
use berth_node::container as node;

use super::running;
use crate::{
    container::object::{Container, Streams},
    engine::Engine,
    http::error::Result,
};

/// Joins streams to the run that is under way, or else to the next one.
///
/// # Errors
/// The shim of the run does not answer.
pub(crate) async fn attach(engine: &Engine, container: &Container, streams: Streams) -> Result<()> {
    let _life = container.life.lock().await;
    match running(engine, container).filter(|_| container.state().is_running()) {
        Some(run) => Ok(join(&run, &streams).await?),
        None => {
            container.await_run(streams);
            Ok(())
        }
    }
}

/// Joins streams to a run.
///
/// # Errors
/// It has ended, or its shim does not answer.
pub(super) async fn join(run: &node::Container, streams: &Streams) -> Result<(), Error> {
    let Streams { stdin, stdout, stderr, .. } = streams;
    let given: Vec<_> = [stdin, stdout, stderr].into_iter().flatten().collect();
    let which = (stdin.is_some(), stdout.is_some(), stderr.is_some());
    run.attach(which, &given).await.map(drop)
}
