//! A headless Chromium with one tab, driven by the Chrome DevTools Protocol over two pipes: messages of JSON that end
//! with NUL, as `--remote-debugging-pipe` has them on the file descriptors 3 and 4.
//!
//! The browser stores everything in a temporary folder, and is killed with all its processes when the value is dropped.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::process::{self, Process};

/// Deadline of one command, of a page to load, and of a condition in the page.
const DEADLINE: Duration = Duration::from_secs(30);

/// What ends the thread that reads the browser's messages.
const END: &str = "end of messages";

/// A browser with one tab.
pub(crate) struct Chromium {
    process: Process,
    commands: File,
    /// The other end of the pipe that [`Chromium::messages`] come from.
    answers: File,
    messages: Receiver<Value>,
    session: String,
    next_id: u64,
    /// Events that arrived and were not looked at.
    events: Vec<Value>,
}

/// Returns the path of the browser. Without one, panics if the environment has `CHROMIUM=required`, which `make test`
/// sets; else says so and returns `None`.
pub(crate) fn find() -> Option<&'static str> {
    let known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let found = known.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        let missing = "no Chromium on this machine: `.ci/tools browser` installs it";
        assert!(std::env::var("CHROMIUM").as_deref() != Ok("required"), "{missing}");
        eprintln!("==== SKIPPED: {missing} ====");
    }
    found
}

impl Chromium {
    /// Starts a browser with an empty tab.
    pub(crate) fn start(binary: &str) -> Chromium {
        let folder = process::folder("chromium");
        let (input, output) = (folder.join("commands"), folder.join("answers"));
        // Both ends of both pipes are opened here, so that neither opening waits for the browser.
        let open = |path: &Path| {
            process::make_fifo(path);
            File::options().read(true).write(true).open(path).expect("a pipe can be opened")
        };
        let (commands, answers) = (open(&input), open(&output));
        let mut shell = Command::new("sh");
        shell
            .args(["-c", r#"exec "$@" 3<"$COMMANDS" 4>"$ANSWERS""#, "sh", binary])
            .args(["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars"])
            .args(["--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--disable-breakpad", "--disable-crash-reporter", "--mute-audio"])
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .env("COMMANDS", &input)
            .env("ANSWERS", &output)
            .env("HOME", &folder)
            .current_dir(&folder);
        let process = Process::start("chromium", shell, &folder.join("output"));
        let reader = BufReader::new(answers.try_clone().expect("a file handle can be duplicated"));
        let messages = read_messages(reader);
        let mut browser =
            Chromium { process, commands, answers, messages, session: String::new(), next_id: 0, events: Vec::new() };
        let target = browser.command("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attach = json!({"targetId": target, "flatten": true});
        let session = browser.command("Target.attachToTarget", attach)["sessionId"].clone();
        browser.session = session.as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            browser.command(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command to the tab; returns its result. Panics if the browser reports an error.
    #[track_caller]
    pub(crate) fn command(&mut self, method: &str, params: Value) -> Value {
        self.next_id += 1;
        let id = self.next_id;
        let mut message = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).expect("the browser reads its pipe");
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.message(deadline) {
                Some(answer) if answer["id"] == id => {
                    assert!(answer["error"].is_null(), "{method} {params}: {}", answer["error"]);
                    return answer["result"].clone();
                }
                Some(event) => self.events.push(event),
                None => panic!("no answer to {method} from {}", self.state()),
            }
        }
    }

    /// Opens an address; returns when the page is loaded.
    #[track_caller]
    pub(crate) fn open(&mut self, url: &str) {
        let deadline = Instant::now() + DEADLINE;
        self.events.retain(|event| event["method"] != "Page.loadEventFired");
        let result = self.command("Page.navigate", json!({"url": url}));
        assert!(result["errorText"].is_null(), "{url}: {}", result["errorText"]);
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            match self.message(deadline) {
                Some(event) => self.events.push(event),
                None => panic!("{url} is not loaded by {}", self.state()),
            }
        }
    }

    /// Evaluates JavaScript in the page, also where the page's own scripts are disabled; returns the value, which must
    /// have a form in JSON.
    #[track_caller]
    pub(crate) fn evaluate(&mut self, script: &str) -> Value {
        let params = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let result = self.command("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{script}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Waits until an expression of JavaScript is true, or another value that counts as true; returns it.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, script: &str) -> Value {
        let value = super::poll(DEADLINE, || Some(self.evaluate(script)).filter(is_true));
        value.unwrap_or_else(|| {
            let text = self.evaluate("document.body.innerText");
            panic!("not in {DEADLINE:?}: {script}; the page says: {}", text.as_str().unwrap_or_default())
        })
    }

    /// Presses and releases a key: one character, or a name such as `Tab` or `Escape`.
    pub(crate) fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            _ => 0,
        };
        let mut down = json!({"type": "keyDown", "key": key, "windowsVirtualKeyCode": code});
        match key {
            "Enter" => down["text"] = "\r".into(),
            _ if key.chars().count() == 1 => down["text"] = key.into(),
            _ => {}
        }
        self.command("Input.dispatchKeyEvent", down);
        self.command("Input.dispatchKeyEvent", json!({"type": "keyUp", "key": key, "windowsVirtualKeyCode": code}));
    }

    /// Types a text into the focused element.
    pub(crate) fn type_text(&mut self, text: &str) {
        for character in text.chars() {
            self.press(&character.to_string());
        }
    }

    /// Sets the size of the window in pixels of the style sheet.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600});
        self.command("Emulation.setDeviceMetricsOverride", size);
    }

    /// Lets the system prefer a colour scheme, `light` or `dark`.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.command("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Writes a picture of the window as PNG.
    pub(crate) fn screenshot(&mut self, file: &Path) {
        let picture = self.command("Page.captureScreenshot", json!({"format": "png"}));
        let bytes = BASE64_STANDARD.decode(picture["data"].as_str().expect("base64")).expect("base64");
        fs::write(file, bytes).expect("the folder can be written to");
    }

    /// Returns and forgets what went wrong in the page: errors on the console, exceptions, refusals by the content
    /// security policy, and requests to other addresses than `origin`.
    pub(crate) fn take_problems(&mut self, origin: &str) -> Vec<String> {
        // The answer comes after every event that the page has caused before.
        self.evaluate("0");
        let events = std::mem::take(&mut self.events);
        let is_bad = |event: &&Value| match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => event["params"]["type"] == "error" || event["params"]["type"] == "warning",
            "Log.entryAdded" => {
                event["params"]["entry"]["level"] != "info" && event["params"]["entry"]["level"] != "verbose"
            }
            "Network.requestWillBeSent" => {
                let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
                !url.starts_with(origin) && !url.starts_with("about:")
            }
            _ => false,
        };
        events.iter().filter(is_bad).map(|event| event["params"].to_string()).collect()
    }

    /// Returns how often the page requested an address that contains `part`, and forgets these requests.
    pub(crate) fn take_requests(&mut self, part: &str) -> usize {
        self.evaluate("0");
        let before = self.events.len();
        self.events.retain(|event| {
            let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
            event["method"] != "Network.requestWillBeSent" || !url.contains(part)
        });
        before - self.events.len()
    }

    /// Returns the next message; `None` after the deadline or if the browser ended.
    fn message(&mut self, deadline: Instant) -> Option<Value> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(200));
            match self.messages.recv_timeout(left) {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if deadline <= Instant::now() || self.process.ended().is_some() => {
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn state(&mut self) -> String {
        let ended = self.process.ended().map_or_else(|| "runs".to_owned(), |status| status.to_string());
        format!("Chromium (pid {}, {ended})", self.process.pid())
    }
}

/// Whether a value counts as true in JavaScript.
fn is_true(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false)) && *value != json!(0) && *value != json!("")
}

/// Starts a thread that reads messages until [`END`].
fn read_messages(mut reader: BufReader<File>) -> Receiver<Value> {
    let (sender, messages) = channel();
    std::thread::spawn(move || {
        loop {
            let mut bytes = Vec::new();
            if reader.read_until(0, &mut bytes).is_err() || bytes.pop() != Some(0) {
                return;
            }
            // A browser that is killed may leave half a message.
            let Ok(message) = serde_json::from_slice::<Value>(&bytes) else { return };
            if message == END || sender.send(message).is_err() {
                return;
            }
        }
    });
    messages
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The browser and its helpers are a process group, whose number is that of the browser.
        if self.process.ended().is_none() {
            // SAFETY: a plain system call. The leader has not been waited for, so the number of its group is not used
            // for another.
            unsafe { libc::kill(-self.process.pid().cast_signed(), libc::SIGKILL) };
        }
        let _ = self.answers.write_all(format!("\"{END}\"\0").as_bytes());
    }
}
