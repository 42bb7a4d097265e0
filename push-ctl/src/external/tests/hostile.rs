//! What isn't meant well.

use super::*;
use crate::fuzz::{Asked, Routed, judge_answer, request};
use std::cell::RefCell;
use tokio::runtime::Runtime;

struct Interface(Router);

impl Routed for Interface {
    fn router(&self) -> Router {
        self.0.clone()
    }
}

/// With the session of the token `ptk_0101…` and the key `pak_0707…`.
fn interface(runtime: &Runtime) -> Interface {
    let world = World::default();
    let controller = runtime.block_on(async {
        let (controller, _ended) = world.start();
        authorised(&controller, 1).await;
        controller
    });
    Interface(router(controller, 5050, Hints::default()))
}

/// Whatever is asked, it is answered, and no answer has a token in it.
pub(crate) fn judge_request(data: &[u8]) {
    thread_local! {
        static INTERFACE: RefCell<Asked<Interface>> = RefCell::new(Asked::new(interface));
    }
    let Some(request) = request(data) else {
        return;
    };
    let path = request.uri().path().to_owned();
    let answer = INTERFACE.with_borrow_mut(|interface| interface.ask(request));
    if let Some((answer, text)) = answer {
        judge_answer(&answer, &text);
        let text = String::from_utf8_lossy(&text);
        let secret = self::text(&token(1));
        // A path that isn't there is repeated.
        assert!(!text.contains(&secret) || path.contains(&secret), "{text}");
    }
}
