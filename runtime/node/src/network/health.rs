//! Whether pods can have a network, in the plugins' own words (STATUS).
//!
//! The kubelet asks every five seconds and takes a Status that does not come for a runtime that is
//! down. So a plugin is asked one question at a time, in a task; all who want to know wait for the
//! same answer, for a moment each.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};
use berth_cni::ConfList;
use serde_json::Value;
use tokio::sync::watch;

use super::{
    exec_config::{self, is_1_1},
    plugin::{Plugins, name_of},
};

/// How long an answer is waited for, from when the question was asked.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The question that has no answer yet.
    asked: Option<Question>,
    last: Option<(Instant, Answer)>,
}

/// The error as text, because several callers may get it.
type Answer = Result<(), String>;

#[derive(Clone, Debug)]
struct Question {
    since: Instant,
    progress: watch::Receiver<Progress>,
}

#[derive(Clone, Debug)]
enum Progress {
    /// The plugin that is asked now.
    Asking(String),
    Answered(Answer),
}

impl Health {
    /// Whether the plugins of a conf list are installed and say that they are ready.
    ///
    /// # Errors
    /// Why not; or which plugin does not answer, and what was said last.
    pub(super) async fn check(
        self: &Arc<Self>,
        plugins: &Arc<Plugins>,
        list: ConfList,
    ) -> anyhow::Result<()> {
        let mut question = self.question(plugins, list);
        let patience = PATIENCE.saturating_sub(question.since.elapsed());
        let answered =
            question.progress.wait_for(|progress| matches!(progress, Progress::Answered(_)));
        // What is known after that, answer or not, is read below.
        let _ = tokio::time::timeout(patience, answered).await;
        let progress = question.progress.borrow().clone();
        match progress {
            Progress::Answered(answer) => answer.map_err(|error| anyhow!(error)),
            Progress::Asking(plugin) => {
                let seconds = question.since.elapsed().as_secs();
                let last = self.last_answer();
                bail!("CNI plugin {plugin} STATUS: no answer for {seconds} s; {last}")
            }
        }
    }

    /// The question that waits for its answer, or a new one.
    fn question(self: &Arc<Self>, plugins: &Arc<Plugins>, list: ConfList) -> Question {
        let mut known = self.known();
        // The channel of a task that panicked is closed, and its question never answered.
        if let Some(question) =
            known.asked.as_ref().filter(|question| question.progress.has_changed().is_ok())
        {
            return question.clone();
        }
        // Until the task begins, its first plugin is the one that is asked.
        let first = list.plugins.first().map(name_of).unwrap_or_default().to_owned();
        let (sender, progress) = watch::channel(Progress::Asking(first));
        let question = Question { since: Instant::now(), progress };
        known.asked = Some(question.clone());
        let health = self.clone();
        let plugins = plugins.clone();
        tokio::spawn(async move {
            let asked = ask(&plugins, &list, &sender).await;
            health.answer(asked.map_err(|error| format!("{error:#}")), &sender);
        });
        question
    }

    fn answer(&self, answer: Answer, progress: &watch::Sender<Progress>) {
        let mut known = self.known();
        known.asked = None;
        known.last = Some((Instant::now(), answer.clone()));
        // Under the lock: otherwise a caller in between would ask the plugins again.
        progress.send_replace(Progress::Answered(answer));
    }

    fn last_answer(&self) -> String {
        match &self.known().last {
            None => "there was no answer before".to_owned(),
            Some((when, answer)) => {
                let what = answer.as_ref().map_or_else(String::as_str, |()| "ready");
                format!("the last answer, {} s ago: {what}", when.elapsed().as_secs())
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(
    plugins: &Plugins,
    list: &ConfList,
    progress: &watch::Sender<Progress>,
) -> anyhow::Result<()> {
    for plugin in &list.plugins {
        let program = plugins.find(plugin).await?;
        // Of older ones, all that can be asked is whether they are installed.
        if is_1_1(list) {
            progress.send_replace(Progress::Asking(name_of(plugin).to_owned()));
            let conf = exec_config::derive(list, plugin, Value::Null, None);
            plugins.run(&program, "STATUS", &[], &conf).await?;
        }
    }
    Ok(())
}
