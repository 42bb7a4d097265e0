//! What isn't meant well.

use super::*;
use crate::fuzz::{Asked, Routed, judge_answer, request};
use axum::extract::ConnectInfo;
use std::cell::RefCell;
use tokio::runtime::Runtime;

struct Interface {
    router: Router,
    _stop: watch::Sender<bool>,
}

impl Routed for Interface {
    fn router(&self) -> Router {
        self.router.clone()
    }
}

fn interface(runtime: &Runtime) -> Interface {
    let world = World::default();
    let (stop, stopping) = watch::channel(false);
    let router = runtime.block_on(async {
        let (controller, _ended) = world.start();
        authorised(&controller, 1).await;
        let daemon = daemon(&controller);
        router(controller, daemon, stopping)
    });
    Interface {
        router,
        _stop: stop,
    }
}

/// Whatever is asked, it is answered.
pub(crate) fn judge_request(data: &[u8]) {
    thread_local! {
        static INTERFACE: RefCell<Asked<Interface>> = RefCell::new(Asked::new(interface));
    }
    let Some(mut request) = request(data) else {
        return;
    };
    let credentials = Credentials {
        uid: Some(0),
        pid: Some(1),
    };
    request.extensions_mut().insert(ConnectInfo(credentials));
    let answer = INTERFACE.with_borrow_mut(|interface| interface.ask(request));
    if let Some((answer, text)) = answer {
        judge_answer(&answer, &text);
    }
}
