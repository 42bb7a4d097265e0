//! What anybody may send to the controller, or leave where it reads, made up: `cargo xtask fuzz`.
//!
//! Each target takes any bytes, and panics if the controller does with them what it must not. What was found
//! worth trying is in `tests/fuzz`, a folder for each target, and is tried again with all other tests.

use crate::{admin, config, external, internal, store};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use futures_util::StreamExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Tries some bytes, and panics if they do harm.
type Judge = fn(&[u8]);

/// By name.
const TARGETS: [(&str, Judge); 6] = [
    ("coap", internal::tests::hostile::judge_datagram),
    ("cbor", internal::tests::hostile::judge_session_request),
    ("http", external::tests::hostile::judge_request),
    ("admin", admin::tests::hostile::judge_request),
    ("toml", config::tests::judge_text),
    ("store", store::tests::hostile::judge_values),
];

/// What there is to try for this target.
pub(crate) fn corpus(target: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.unwrap().join("tests/fuzz").join(target)
}

#[test]
fn what_was_worth_trying_does_no_harm() {
    for (name, judge) in TARGETS {
        let mut tried = 0;
        for entry in fs::read_dir(corpus(name)).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            judge(&fs::read(path).unwrap());
            tried += 1;
        }
        assert!(tried > 0, "{name}");
    }
}

/// Requests that are one lot: what one changes, those after it see.
const LOT: u32 = 1000;

/// A router that is asked without a network, and made anew at times.
pub(crate) struct Asked<R> {
    runtime: Runtime,
    make: fn(&Runtime) -> R,
    made: Option<R>,
    asked: u32,
}

/// A router, and what has to live as long as it.
pub(crate) trait Routed {
    fn router(&self) -> Router;
}

impl<R: Routed> Asked<R> {
    pub(crate) fn new(make: fn(&Runtime) -> R) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Self {
            runtime: runtime.unwrap(),
            make,
            made: None,
            asked: 0,
        }
    }

    /// What is answered to `request`, and the beginning of that, if anything is within a moment: some answers
    /// are meant to take long.
    pub(crate) fn ask(&mut self, request: Request<Body>) -> Option<(Response<()>, Vec<u8>)> {
        const MOMENT: Duration = Duration::from_millis(100);
        if self.asked.is_multiple_of(LOT) {
            self.made = None; // The old one ends before there is a new one.
        }
        self.asked = self.asked.wrapping_add(1);
        let made = self.made.get_or_insert_with(|| (self.make)(&self.runtime));
        let router = TowerToHyperService::new(made.router());
        let answer = async {
            let (head, body) = router.call(request).await.unwrap().into_parts();
            let mut chunks = body.into_data_stream();
            let mut text = Vec::new();
            if let Some(chunk) = chunks.next().await {
                text.extend_from_slice(&chunk.unwrap());
            }
            (Response::from_parts(head, ()), text)
        };
        self.runtime
            .block_on(async { timeout(MOMENT, answer).await.ok() })
    }
}

/// The request in this text: a line with method and path, lines with headers, an empty line, the body. `None`
/// for what doesn't get past an HTTP server.
pub(crate) fn request(data: &[u8]) -> Option<Request<Body>> {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (head, body) = end.map_or((data, &b""[..]), |end| (&data[..end], &data[end + 2..]));
    let mut lines = head.split(|&byte| byte == b'\n');
    let mut words = lines.next()?.splitn(2, |&byte| byte == b' ');
    let mut request = Request::builder().method(words.next()?).uri(words.next()?);
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let value = line[colon + 1..].trim_ascii();
        request = request.header(&line[..colon], value);
    }
    request.body(body.to_vec().into()).ok()
}

/// What is wrong has its own form of answer, and no answer is the server's fault.
pub(crate) fn judge_answer(answer: &Response<()>, text: &[u8]) {
    let status = answer.status();
    assert!(
        !status.is_server_error() || status.as_u16() == 503,
        "{status}: {}",
        String::from_utf8_lossy(text)
    );
    if status.is_client_error() {
        let problem: crate::problem::Problem = serde_json::from_slice(text).unwrap();
        assert_eq!(problem.status, status.as_u16());
    }
}

/// libFuzzer, as a test: so it gets at what only the crate itself sees.
#[cfg(feature = "fuzz")]
mod engine {
    use super::{Judge, TARGETS};
    use libfuzzer_sys as _;
    use std::env;
    use std::ffi::{CString, c_char, c_int};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{LazyLock, OnceLock};
    use std::thread;
    use std::time::{Duration, Instant};

    static JUDGE: OnceLock<Judge> = OnceLock::new();

    /// What takes longer may never end. (libFuzzer's own limit is for what runs in the main thread.)
    const LIMIT: Duration = Duration::from_secs(20);

    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

    /// When the run that there is began, in microseconds since [`BEGIN`]; none if it is [`u64::MAX`].
    static RUN_BEGAN_US: AtomicU64 = AtomicU64::new(u64::MAX);

    fn now_us() -> u64 {
        u64::try_from(BEGIN.elapsed().as_micros()).expect("not so late")
    }

    /// Ends the process if a run takes too long, which has libFuzzer keep its input.
    fn watch() {
        loop {
            thread::sleep(Duration::from_secs(1));
            let took_us = now_us().saturating_sub(RUN_BEGAN_US.load(Ordering::Relaxed));
            if Duration::from_micros(took_us) > LIMIT {
                eprintln!("a run takes longer than {LIMIT:?}");
                std::process::abort();
            }
        }
    }

    #[expect(unsafe_code, reason = "the engine isn't written in Rust")]
    unsafe extern "C" {
        fn LLVMFuzzerRunDriver(
            argument_count: *mut c_int,
            arguments: *mut *mut *mut c_char,
            callback: extern "C" fn(*const u8, usize) -> c_int,
        ) -> c_int;
    }

    extern "C" fn judge(data: *const u8, len: usize) -> c_int {
        let data = if len == 0 {
            &[]
        } else {
            // SAFETY: libFuzzer passes that many bytes, which stay as they are until this returns.
            #[expect(unsafe_code, reason = "the engine isn't written in Rust")]
            unsafe {
                std::slice::from_raw_parts(data, len)
            }
        };
        // A panic doesn't get out of here, but ends the process.
        RUN_BEGAN_US.store(now_us(), Ordering::Relaxed);
        JUDGE.get().expect("set before")(data);
        RUN_BEGAN_US.store(u64::MAX, Ordering::Relaxed);
        0
    }

    /// `PUSH_FUZZ_TARGET` is the target, `PUSH_FUZZ_ARGUMENTS` are libFuzzer's, one a line. It ends the process.
    #[test]
    #[ignore = "takes as long as it is told to: cargo xtask fuzz"]
    fn fuzz_for() {
        let target = env::var("PUSH_FUZZ_TARGET").expect("PUSH_FUZZ_TARGET names a target");
        let found = TARGETS.iter().find(|(name, _)| *name == target);
        JUDGE.get_or_init(|| found.expect("PUSH_FUZZ_TARGET is a target").1);
        thread::spawn(watch);
        let arguments = env::var("PUSH_FUZZ_ARGUMENTS").unwrap_or_default();
        let texts = [target.as_str()].into_iter().chain(arguments.lines());
        let mut pointers: Vec<*mut c_char> = texts
            .map(|text| CString::new(text).expect("no NUL in it").into_raw())
            .collect();
        let mut count = c_int::try_from(pointers.len()).expect("a few");
        pointers.push(std::ptr::null_mut());
        let mut arguments = pointers.leak().as_mut_ptr();
        // SAFETY: both are as C's `main` has them, and are never freed.
        #[expect(unsafe_code, reason = "the engine isn't written in Rust")]
        unsafe {
            LLVMFuzzerRunDriver(&raw mut count, &raw mut arguments, judge);
        }
    }

    /// What libfuzzer-sys wants of a program that is one target, and nothing calls in this one.
    #[unsafe(no_mangle)]
    #[expect(unsafe_code, reason = "its name is libfuzzer-sys' choice")]
    #[expect(
        improper_ctypes_definitions,
        reason = "so is its type; both ends are Rust"
    )]
    extern "C" fn rust_fuzzer_test_input(_: &[u8]) -> i32 {
        0
    }
}
