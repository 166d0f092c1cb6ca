//! The classic builder: `POST /build`. BuildKit is another one, and not here.
//!
//! ```text
//! context   the client's tar, below a directory of the build's own
//!   dockerfile  stage by stage, step by step; each step makes an image of the one before
//!     cache     a step that was done before is not done again
//!     source    what COPY and ADD take, with a hash that the cache goes by
//!     layer     the files of an image, with what COPY, ADD and WORKDIR write over them
//!     run       a container of the engine for RUN
//!     image     writes the image of a step
//! ```
//!
//! Steps are done one after the other, those of stages that do not depend on each other as well: the
//! output is that of dockerd, whose order is that of the file.
//!
//! Contexts and Dockerfiles are hostile: what is in them is opened below descriptors, see `archive`. A
//! build that is cancelled, or whose daemon dies, leaves images without names, which the next one takes up
//! where it ended, but no container and no file of its own.

mod base;
mod builder;
mod cache;
mod containers;
mod context;
mod copy;
mod directory;
mod dockerfile;
mod download;
mod failure;
mod image;
mod layer;
mod life;
mod options;
mod output;
mod run;
mod running;
mod source;
mod stage;
mod step;
mod transfer;

pub(crate) use self::{
    directory::discard_left,
    failure::BuildFailure,
    life::{Started, start},
    options::Options,
    running::Running,
};
