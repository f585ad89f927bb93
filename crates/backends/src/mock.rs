//! [`MockBackend`]: scripted answers without a model, for tests, dry runs and measuring everything but the model.
//!
//! Sampling parameters don't change a scripted answer; [`MockOptions::refuse`] names those that the mock shall refuse,
//! as a backend refuses what it can't honour.

mod service;
mod virtual_servers;
mod virtual_time;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::{Deserialize, Serialize};
use vgen_core::{
    Backend, CancelToken, Fault, FaultClass, FinishReason, Generation, Message, Reply, Request, Response, Role,
    SamplingParams, Timings, Usage,
};

pub use service::{Distribution, MockService};
use virtual_servers::VirtualServers;
pub use virtual_time::{Advanced, VirtualTime};

/// How often a waiting answer looks whether it is still wanted.
const WAIT_STEP: Duration = Duration::from_millis(5);

/// What a [`MockBackend`] answers, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MockOptions {
    /// The `model_name` column.
    pub model_name: String,
    /// The answer. `{row}` is the row's number, `{sample}` the sample's, `{prompt}` the text of the last message,
    /// `{images}` how many images the messages have; `{{` and `}}` are braces.
    pub answer: String,
    /// Milliseconds until an answer comes; row `n` waits for the element `n` modulo their number. Empty: no waiting.
    pub delays_ms: Vec<u64>,
    /// Servers with a queue, instead of `delays_ms`; the answer's words come evenly over the service time.
    pub service: Option<MockService>,
    /// How many requests are in flight, at least 1.
    pub window: usize,
    /// Prompt tokens to report; else the words of the messages.
    pub input_tokens: Option<u64>,
    /// Answer tokens to report; else the words of the answer.
    pub output_tokens: Option<u64>,
    /// Rows that fail.
    pub faults: Vec<MockFault>,
    /// Names of sampling parameters to refuse.
    pub refuse: Vec<String>,
    /// Go on with requests that were given up, as a backend that is stuck.
    pub ignores_cancel: bool,
}

impl Default for MockOptions {
    fn default() -> Self {
        Self {
            model_name: "mock".into(),
            answer: "answer to row {row}".into(),
            delays_ms: Vec::new(),
            service: None,
            window: 16,
            input_tokens: None,
            output_tokens: None,
            faults: Vec::new(),
            refuse: Vec::new(),
            ignores_cancel: false,
        }
    }
}

/// A row that fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MockFault {
    /// The row's number, from 0.
    pub row: u64,
    /// Only this sample of it; without it the whole request.
    #[serde(default)]
    pub sample: Option<u32>,
    /// The fault's code.
    #[serde(default = "MockFault::default_code")]
    pub code: String,
    /// What it says.
    #[serde(default = "MockFault::default_message")]
    pub message: String,
    /// What it means for the run.
    #[serde(default = "MockFault::default_class")]
    pub class: FaultClass,
    /// How often it was tried.
    #[serde(default = "MockFault::default_attempts")]
    pub attempts: u32,
}

impl MockFault {
    fn default_code() -> String {
        "mock.fault".into()
    }

    fn default_message() -> String {
        "a scripted fault".into()
    }

    fn default_class() -> FaultClass {
        FaultClass::Row
    }

    fn default_attempts() -> u32 {
        1
    }

    fn fault(&self) -> Fault {
        Fault::new(self.class, self.code.clone(), self.message.clone()).with_attempts(self.attempts)
    }
}

/// A script that can't be played.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MockError {
    /// The answer has an unknown placeholder, or a brace without its partner.
    #[error("the mock's answer has the unknown placeholder {0:?}")]
    Placeholder(String),
    /// No request could ever be in flight.
    #[error("the mock's window is 0")]
    Window,
    /// No server, or a time of service that is no time.
    #[error("the mock's service has no server, or a mean below 0 or above 1e12")]
    Service,
    /// The script refuses the parameter.
    #[error("the mock backend can't honour {0}")]
    Refused(String),
}

impl From<MockError> for Fault {
    fn from(error: MockError) -> Self {
        let fault = |code: &'static str| Fault::stop(code, error.to_string());
        match error {
            MockError::Placeholder(_) => fault("config.mock_answer")
                .with_hint("known are {row}, {sample}, {prompt} and {images}; write {{ and }} for braces"),
            MockError::Window => fault("config.mock_window").with_hint("set it to at least 1"),
            MockError::Service => {
                fault("config.mock_service").with_hint("set servers to at least 1 and mean_ms to 0 up to 1e12")
            }
            MockError::Refused(_) => fault("sampling.unsupported").with_hint("leave the parameter out"),
        }
    }
}

/// Scripted answers, which end with it: on a few threads, or in virtual time.
pub struct MockBackend {
    script: Arc<Script>,
    servers: Servers,
}

enum Servers {
    Threads(Sender<Job>),
    Virtual(Arc<VirtualServers>),
}

struct Script {
    options: MockOptions,
    answer: Vec<Piece>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

struct Job {
    request: Request,
    reply: Box<dyn Reply>,
    submitted: Instant,
}

enum Piece {
    Text(String),
    Row,
    Sample,
    Prompt,
    Images,
}

impl MockBackend {
    /// Starts the threads.
    ///
    /// # Errors
    /// `config.mock_answer`, `config.mock_window`, `config.mock_service`.
    pub fn new(options: MockOptions) -> Result<Self, MockError> {
        let script = Arc::new(Script::new(options)?);
        let (jobs, queue) = unbounded::<Job>();
        for _ in 0..script.servers() {
            let (script, queue): (Arc<Script>, Receiver<Job>) = (Arc::clone(&script), queue.clone());
            thread::spawn(move || {
                for job in queue {
                    script.play(job);
                }
            });
        }
        Ok(Self { script, servers: Servers::Threads(jobs) })
    }

    /// The same script in virtual time: nothing happens but while somebody moves `time` on. Deadlines of requests are of
    /// real time and don't count.
    ///
    /// # Errors
    /// As [`MockBackend::new`].
    pub fn in_virtual_time(options: MockOptions, time: Arc<VirtualTime>) -> Result<Self, MockError> {
        let script = Arc::new(Script::new(options)?);
        let servers = VirtualServers { script: Arc::clone(&script), time, state: Mutex::default() };
        Ok(Self { script, servers: Servers::Virtual(Arc::new(servers)) })
    }

    /// The largest number of requests that were in flight at a time, so far.
    pub fn most_in_flight(&self) -> usize {
        self.script.most_in_flight.load(Ordering::Acquire)
    }
}

impl Backend for MockBackend {
    fn model_name(&self) -> &str {
        &self.script.options.model_name
    }

    fn check(&self, sampling: &SamplingParams, _num_generations: u32) -> Result<(), Fault> {
        // Whatever differs from the default was asked for.
        let (asked, default) = (serde_json::to_value(sampling), serde_json::to_value(SamplingParams::default()));
        let (Ok(asked), Ok(default)) = (asked, default) else { return Ok(()) };
        match self.script.options.refuse.iter().find(|name| asked.get(name) != default.get(name)) {
            Some(name) => Err(MockError::Refused(name.clone()).into()),
            None => Ok(()),
        }
    }

    fn window(&self) -> usize {
        self.script.options.window
    }

    fn submit(&self, mut request: Request, reply: Box<dyn Reply>) {
        if self.script.options.ignores_cancel {
            request.cancel = CancelToken::default();
        }
        let in_flight = self.script.in_flight.fetch_add(1, Ordering::AcqRel) + 1;
        self.script.most_in_flight.fetch_max(in_flight, Ordering::AcqRel);
        match &self.servers {
            Servers::Threads(jobs) => {
                if let Err(lost) = jobs.send(Job { request, reply, submitted: Instant::now() }) {
                    lost.0.reply.done(Err(Fault::stop("backend.lost", "the mock's threads ended")));
                }
            }
            Servers::Virtual(servers) => servers.submit(request, reply),
        }
    }
}

impl Script {
    fn new(options: MockOptions) -> Result<Self, MockError> {
        if options.window == 0 {
            return Err(MockError::Window);
        }
        if options.service.as_ref().is_some_and(|service| !service.is_possible()) {
            return Err(MockError::Service);
        }
        let answer = pieces(&options.answer)?;
        Ok(Self { answer, in_flight: AtomicUsize::new(0), most_in_flight: AtomicUsize::new(0), options })
    }

    /// How many requests are worked on at a time.
    fn servers(&self) -> usize {
        self.options.service.as_ref().map_or(self.options.window, |service| service.servers)
    }

    fn play(&self, job: Job) {
        let Job { request, mut reply, submitted } = job;
        let started = Instant::now();
        let mut timings = Timings { queue: (started - submitted).as_secs_f64(), ..Timings::default() };
        let words = self.words(&request);
        let mut ended = None;
        match &self.options.service {
            None => {
                ended = wait(&request, submitted + self.delay(request.row));
                if ended.is_none() {
                    words.iter().for_each(|(sample, word)| reply.delta(*sample, word));
                }
            }
            Some(service) => {
                let seconds = service.seconds(request.row);
                // An answer without words takes its time, too.
                for number in 1..=words.len().max(1) {
                    let share = number as f64 / words.len().max(1) as f64;
                    ended = wait(&request, started + Duration::from_secs_f64(seconds * share));
                    if ended.is_some() {
                        break;
                    }
                    timings.first_token.get_or_insert_with(|| submitted.elapsed().as_secs_f64());
                    if let Some((sample, word)) = words.get(number - 1) {
                        reply.delta(*sample, word);
                    }
                }
            }
        }
        timings.total = submitted.elapsed().as_secs_f64();
        timings.first_token.get_or_insert(timings.total);
        self.end(&request, reply, ended, timings);
    }

    fn end(&self, request: &Request, reply: Box<dyn Reply>, ended: Option<FinishReason>, timings: Timings) {
        let result = match self.options.faults.iter().find(|fault| fault.row == request.row && fault.sample.is_none()) {
            Some(fault) if ended.is_none() => Err(fault.fault()),
            _ => Ok(Response {
                model_name: self.options.model_name.clone(),
                generations: (0..request.num_generations)
                    .map(|sample| self.generation(request, sample, ended, timings))
                    .collect(),
            }),
        };
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        reply.done(result);
    }

    /// A row's delay, from its submission.
    fn delay(&self, row: u64) -> Duration {
        let delays = &self.options.delays_ms;
        match delays.len() {
            0 => Duration::ZERO,
            count => Duration::from_millis(delays[(row % count as u64) as usize]),
        }
    }

    /// What is streamed: the words of all samples that don't fail, with the samples' numbers.
    fn words(&self, request: &Request) -> Vec<(u32, String)> {
        let fails = |sample| {
            let of_row = |fault: &&MockFault| fault.row == request.row;
            self.options.faults.iter().filter(of_row).any(|fault| fault.sample.is_none_or(|its| its == sample))
        };
        let mut words = Vec::new();
        for sample in (0..request.num_generations).filter(|sample| !fails(*sample)) {
            let text = self.answer(request, sample);
            words.extend(text.split_inclusive(' ').map(|word| (sample, word.to_owned())));
        }
        words
    }

    fn generation(
        &self,
        request: &Request,
        sample: u32,
        ended: Option<FinishReason>,
        timings: Timings,
    ) -> Result<Generation, Fault> {
        if let Some(fault) = self.options.faults.iter().find(|f| f.row == request.row && f.sample == Some(sample)) {
            return Err(fault.fault());
        }
        let text = if ended.is_some() { String::new() } else { self.answer(request, sample) };
        let words = |text: &str| text.split_whitespace().count() as u64;
        let prompt_words = || request.messages.iter().map(|message| words(&message.plain_text())).sum();
        Ok(Generation {
            finish_reason: Some(ended.unwrap_or(FinishReason::Stop)),
            usage: Some(Usage {
                input_tokens: self.options.input_tokens.unwrap_or_else(prompt_words),
                output_tokens: self.options.output_tokens.unwrap_or_else(|| words(&text)),
                vision_tokens: None,
            }),
            text: Some(text),
            timings,
            ..Generation::default()
        })
    }

    fn answer(&self, request: &Request, sample: u32) -> String {
        let mut answer = String::new();
        for piece in &self.answer {
            match piece {
                Piece::Text(text) => answer.push_str(text),
                Piece::Row => answer.push_str(&request.row.to_string()),
                Piece::Sample => answer.push_str(&sample.to_string()),
                Piece::Prompt => {
                    let asked = request.messages.iter().rev().find(|message| message.role == Role::User);
                    answer.push_str(&asked.map(Message::plain_text).unwrap_or_default());
                }
                Piece::Images => {
                    let images: usize = request.messages.iter().map(|message| message.images().count()).sum();
                    answer.push_str(&images.to_string());
                }
            }
        }
        answer
    }
}

/// Waits for a moment; says why if it ended early.
fn wait(request: &Request, until: Instant) -> Option<FinishReason> {
    loop {
        if request.cancel.is_cancelled() {
            return Some(FinishReason::Cancelled);
        }
        let now = Instant::now();
        if request.deadline.is_some_and(|deadline| now >= deadline) {
            return Some(FinishReason::Deadline);
        }
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            return None;
        }
        thread::sleep(left.min(WAIT_STEP));
    }
}

fn pieces(template: &str) -> Result<Vec<Piece>, MockError> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{") {
            text.push('{');
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix("}}") {
            text.push('}');
            rest = after;
            continue;
        }
        let end = rest.find('}').map_or(rest.len(), |end| end + 1);
        let piece = match &rest[..end] {
            "{row}" => Piece::Row,
            "{sample}" => Piece::Sample,
            "{prompt}" => Piece::Prompt,
            "{images}" => Piece::Images,
            other => return Err(MockError::Placeholder(other.to_owned())),
        };
        pieces.extend([Piece::Text(std::mem::take(&mut text)), piece]);
        rest = &rest[end..];
    }
    text.push_str(rest);
    pieces.push(Piece::Text(text));
    Ok(pieces)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn request(row: u64) -> Request {
        Request::new(row, vec![Message::text(Role::User, "what is it")], SamplingParams::default())
    }

    #[test]
    fn the_script_is_played() {
        let options = MockOptions {
            answer: "{{{row}.{sample}}} {prompt}, {images}".into(),
            faults: vec![MockFault {
                row: 3,
                sample: Some(1),
                code: "x.y".into(),
                message: "m".into(),
                class: FaultClass::Row,
                attempts: 2,
            }],
            ..MockOptions::default()
        };
        let backend = MockBackend::new(options).unwrap();
        let response = backend.generate(Request { num_generations: 2, ..request(3) }).unwrap();
        let first = response.generations[0].as_ref().unwrap();
        assert_eq!(first.text.as_deref(), Some("{3.0} what is it, 0"));
        assert_eq!(first.usage.unwrap().input_tokens, 3);
        let second = response.generations[1].as_ref().unwrap_err();
        assert_eq!((&*second.code, second.attempts), ("x.y", 2));
    }

    #[test]
    fn unknown_placeholders_are_refused() {
        for answer in ["{rwo}", "{row", "a } b"] {
            let options = MockOptions { answer: answer.into(), ..MockOptions::default() };
            assert!(matches!(MockBackend::new(options), Err(MockError::Placeholder(_))), "{answer}");
        }
    }

    #[test]
    fn services_that_cannot_be_are_refused() {
        for (mean_ms, servers) in [(1.0, 0), (-1.0, 1), (f64::NAN, 1), (1e300, 1)] {
            let service = MockService { distribution: Distribution::Fixed, mean_ms, servers, seed: 0 };
            let options = MockOptions { service: Some(service), ..MockOptions::default() };
            assert!(matches!(MockBackend::new(options), Err(MockError::Service)), "{mean_ms}, {servers}");
        }
    }

    #[test]
    fn refused_parameters_are_named() {
        let options = MockOptions { refuse: vec!["top_k".into(), "seed".into()], ..MockOptions::default() };
        let backend = MockBackend::new(options).unwrap();
        assert!(backend.check(&SamplingParams::default(), 1).is_ok());
        let asked = SamplingParams { seed: Some(0), ..SamplingParams::default() };
        assert_eq!(backend.check(&asked, 1).unwrap_err().message, "the mock backend can't honour seed");
    }

    #[test]
    fn cancelled_and_late_requests_end_early() {
        let options = MockOptions { delays_ms: vec![60_000], ..MockOptions::default() };
        let backend = MockBackend::new(options).unwrap();
        let given_up = request(0);
        given_up.cancel.cancel();
        let late = Request { deadline: Some(Instant::now() + Duration::from_millis(20)), ..request(1) };
        for (request, reason) in [(given_up, FinishReason::Cancelled), (late, FinishReason::Deadline)] {
            let response = backend.generate(request).unwrap();
            assert_eq!(response.generations[0].as_ref().unwrap().finish_reason, Some(reason));
        }
    }
}
