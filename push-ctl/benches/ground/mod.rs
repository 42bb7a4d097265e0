//! Where live frames are measured: network namespaces, each with a generator, one competitor, and a sink.
//!
//! ```text
//! generator ─▶ ext-peer ═ ext ─▶ competitor ─▶ int ═ int-peer ─▶ sink
//! ```
//!
//! Generator and sink are XDP programs, and the same for all. Whatever a competitor is, all of its way is on the
//! CPU of the generator: what is counted is what one CPU does from writing a frame to having judged it.

pub(crate) mod ladder;
pub(crate) mod nft;
pub(crate) mod plan;
mod proof;
pub(crate) mod relay;
pub(crate) mod rig;
pub(crate) mod route;
pub(crate) mod variant;

use crate::gateway::Gateway;
use anyhow::{Context, Result};
use rig::{Outcome, Rig, Turn};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

/// A namespace with one competitor. It is there until the process ends.
pub(crate) struct Ground {
    name: String,
    turns: Sender<Turn>,
    outcomes: Receiver<Result<Outcome>>,
}

impl Ground {
    /// Makes a namespace, and in it what `build` makes of a gateway.
    pub(crate) fn new(
        name: &str,
        build: impl FnOnce(Gateway) -> Result<Rig> + Send + 'static,
    ) -> Result<Self> {
        let (turns, wanted) = mpsc::channel::<Turn>();
        let (sender, outcomes) = mpsc::channel();
        thread::spawn(move || {
            Gateway::run(move |gateway| {
                let mut rig = match build(gateway) {
                    Ok(rig) => rig,
                    Err(error) => {
                        let _ = sender.send(Err(error));
                        return;
                    }
                };
                let _ = sender.send(rig.prove());
                for turn in wanted {
                    let _ = sender.send(rig.turn(&turn));
                }
            });
        });
        let ground = Self {
            name: name.to_owned(),
            turns,
            outcomes,
        };
        ground.outcome()?;
        Ok(ground)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Has this many frames sent; fails if not each of them arrives as it is to.
    pub(crate) fn turn(&self, turn: &Turn) -> Result<Outcome> {
        self.turns.send(turn.clone()).context("a ground is gone")?;
        self.outcome()
    }

    fn outcome(&self) -> Result<Outcome> {
        let outcome = self.outcomes.recv().context("a ground is gone")?;
        outcome.with_context(|| self.name.clone())
    }
}
