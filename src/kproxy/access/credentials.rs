//! `credentials_file`: who may write.
//!
//! Who a client is, is one look-up of one digest ([`Secret::id`]): an unknown user and a wrong password are the same miss.
//! Of the secrets nothing is kept but these digests.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::authorization::Shown;
use super::rate::{Limits, Meter};
use super::secret::{Digest, Secret};
use super::topics::TopicGlobs;
use crate::config::{Problems, Section};

/// Longest name of a credential.
const MAX_NAME: usize = 64;
/// Challenges as `WWW-Authenticate` has them.
const BEARER: &str = "Bearer realm=\"kproxy\"";
const BASIC: &str = "Basic realm=\"kproxy\", charset=\"UTF-8\"";

/// Someone who may write.
#[derive(Debug)]
pub(in crate::kproxy) struct Credential {
    /// `name`: for people who read the log.
    pub(in crate::kproxy) name: Arc<str>,
    /// `topics`; `None` is every topic that is allowed at all.
    pub(super) topics: Option<TopicGlobs>,
    /// What is left of `requests_per_second` and `bytes_per_second`.
    pub(super) meter: Option<Arc<Meter>>,
}

/// The credentials of one reading of the file. `Debug` shows no more than how many there are.
pub(in crate::kproxy) struct Book {
    key: Digest,
    by_id: HashMap<Digest, Arc<Credential>>,
    /// What clients are told to show.
    pub(super) challenges: Vec<&'static str>,
}

impl fmt::Debug for Book {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Book of {}", self.by_id.len())
    }
}

impl Book {
    /// Reads a file, or notes everything that is wrong with it, never what is in it.
    pub(super) fn load(file: &Path, problems: &mut Problems) -> Book {
        let mut section = Section::load_secrets(file, problems);
        let mut book = Book { key: Digest::random(), by_id: HashMap::new(), challenges: Vec::new() };
        let mut names = BTreeSet::new();
        for mut entry in section.sections("credentials", true, problems).unwrap_or_default() {
            let credential = Credential {
                name: name(&mut entry, &mut names, problems),
                topics: TopicGlobs::from_section("topics", false, &mut entry, problems),
                meter: Limits::from_section(&mut entry, problems).map(|limits| Arc::new(Meter::new(limits))),
            };
            if let Some(secret) = Secret::from_section(&mut entry, problems)
                && book.add(&secret, credential).is_err()
            {
                entry.note("", "has the same secret as one before it", problems);
            }
            entry.finish(problems);
        }
        section.finish(problems);
        book
    }

    fn add(&mut self, secret: &Secret, credential: Credential) -> Result<(), ()> {
        let challenge = match secret {
            Secret::Bearer(_) => BEARER,
            Secret::Basic(..) => BASIC,
        };
        if !self.challenges.contains(&challenge) {
            self.challenges.push(challenge);
        }
        let before = self.by_id.insert(secret.id(&self.key), Arc::new(credential));
        if before.is_some() { Err(()) } else { Ok(()) }
    }

    /// Whose it is.
    pub(super) fn find(&self, shown: &Shown<'_>) -> Option<&Arc<Credential>> {
        self.by_id.get(&Secret::of(shown).id(&self.key))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// A credential that has the name and limits of one in `former` goes on with what that one had left.
    pub(super) fn go_on_from(&mut self, former: &Book) {
        let meters: HashMap<&str, &Arc<Meter>> = former
            .by_id
            .values()
            .filter_map(|credential| Some((&*credential.name, credential.meter.as_ref()?)))
            .collect();
        for credential in self.by_id.values_mut() {
            let former = meters.get(&*credential.name);
            // Nobody else has it yet, so it can be changed.
            if let (Some(former), Some(Credential { meter: Some(meter), .. })) = (former, Arc::get_mut(credential))
                && former.limits() == meter.limits()
            {
                *meter = Arc::clone(former);
            }
        }
    }
}

fn name(entry: &mut Section, names: &mut BTreeSet<Arc<str>>, problems: &mut Problems) -> Arc<str> {
    let is_given = entry.has("name");
    let name: Arc<str> = entry.string("name", None, problems).into();
    let is_name = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if is_given && !is_name {
        entry.note("name", format!("must be 1 to {MAX_NAME} of the characters a-z A-Z 0-9 . _ -"), problems);
    } else if is_given && !names.insert(Arc::clone(&name)) {
        entry.note("name", "is the same as that of one before it", problems);
    }
    name
}

/// The file and what was read from it last.
#[derive(Clone, Debug)]
pub(in crate::kproxy) struct CredentialsFile {
    pub(super) path: PathBuf,
    pub(super) book: Arc<Book>,
}

impl CredentialsFile {
    /// Takes `credentials_file` and reads it; `None` where the key is absent.
    pub(super) fn from_section(section: &mut Section, problems: &mut Problems) -> Option<Self> {
        if !section.has("credentials_file") {
            section.take("credentials_file");
            return None;
        }
        let path = PathBuf::from(section.string("credentials_file", None, problems));
        if path.as_os_str().is_empty() {
            section.note("credentials_file", "must be the name of a file", problems);
            return None;
        }
        let book = Arc::new(Book::load(&path, problems));
        Some(CredentialsFile { path, book })
    }

    /// What is to be said of a file that others than its owner can read.
    pub(super) fn exposure(&self) -> Option<String> {
        let mode = fs::metadata(&self.path).ok()?.permissions().mode();
        let path = self.path.display();
        (mode & 0o044 != 0)
            .then(|| format!("credentials_file: others than its owner can read {path} (mode {:o})", mode & 0o777))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn load(text: &str) -> Result<Book, Vec<String>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut problems = Problems::default();
        let book = Book::load(file.path(), &mut problems);
        let texts: Vec<_> = problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect();
        if texts.is_empty() { Ok(book) } else { Err(texts) }
    }

    fn who<'a>(book: &'a Book, shown: Shown<'_>) -> Option<&'a str> {
        book.find(&shown).map(|credential| &*credential.name)
    }

    const SHA256_OF_ABC: &str = "BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_client_is_found_by_what_it_shows_and_by_nothing_else() {
        let book = load(&format!(
            "credentials:
 - {{name: plain-token, token: t0ken}}
 - {{name: hashed-token, token_sha256: {SHA256_OF_ABC}}}
 - {{name: plain-user, user: ann, password: 'p:w'}}
 - {{name: hashed-user, user: bob, password_sha256: {SHA256_OF_ABC}}}
 - {{name: second-password, user: ann, password: other}}
"
        ))
        .unwrap();
        let basic = |user: &str, password: &str| Shown::Basic(user.into(), password.into());
        for (shown, name) in [
            (Shown::Bearer(b"t0ken"), Some("plain-token")),
            (Shown::Bearer(b"abc"), Some("hashed-token")),
            (Shown::Bearer(b"T0ken"), None),
            (Shown::Bearer(b"t0ke"), None),
            (Shown::Bearer(b""), None),
            (Shown::Bearer(SHA256_OF_ABC.as_bytes()), None),
            (Shown::Bearer(b"p:w"), None),
            (basic("ann", "p:w"), Some("plain-user")),
            (basic("ann", "other"), Some("second-password")),
            (basic("bob", "abc"), Some("hashed-user")),
            (basic("bob", "p:w"), None),
            (basic("ann", "abc"), None),
            (basic("ann", ""), None),
            (basic("", ""), None),
            (basic("", "t0ken"), None),
            (basic("ann:p", "w"), None),
        ] {
            assert_eq!(who(&book, shown), name);
        }
        assert_eq!(book.challenges, [BEARER, BASIC]);
        let shown = format!("{book:?} {:?}", book.by_id);
        assert!(shown.contains("Book of 5") && !shown.contains("ann") && !shown.contains("t0ken"), "{shown}");
    }

    #[test]
    fn everything_wrong_is_told_at_once_and_nothing_of_a_secret() {
        let problems = load(
            "credentials:
 - {name: a, token: SECRET!}
 - {name: a, token: 'SECRET SECRET'}
 - {name: 'SECRET SECRET', token: SECRET1}
 - {name: b}
 - {name: c, user: SECRET, token: SECRET2}
 - {name: d, user: SECRET}
 - {name: e, password: SECRET}
 - {name: f, token: SECRET3, token_sha256: SECRET}
 - {name: g, token_sha256: SECRET}
 - {name: h, user: 'SECRET:', password: \"SECRET\\n\"}
 - {name: i, user: u, password: 12345}
 - {name: j, user: u, password: ''}
 - {name: k, token: SECRET1}
 - {name: l, token: SECRET4, SECRET: SECRET, topics: []}
 - {token: SECRET5, requests_per_second: SECRET}
 - SECRET
 - {name: m, token_sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}
 - {name: n, token_sha256: [SECRET]}
SECRET: SECRET
",
        )
        .unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "credentials[16]",
                "credentials[1].token",
                "credentials[2].name",
                "credentials[2].token",
                "credentials[3].name",
                "credentials[4]",
                "credentials[5]",
                "credentials[6]",
                "credentials[7]",
                "credentials[8]",
                "credentials[9].token_sha256",
                "credentials[10].user",
                "credentials[10].password",
                "credentials[11].password",
                "credentials[12].password",
                "credentials[13]",
                "credentials[14].topics",
                "credentials[14]",
                "credentials[15].name",
                "credentials[15].requests_per_second",
                "credentials[17].token_sha256",
                "credentials[18].token_sha256",
                "",
            ],
            "{problems:#?}"
        );
        let told = problems.join("\n");
        assert!(!told.contains("SECRET") && !told.contains("12345"), "{told}");
    }

    #[test]
    fn a_file_without_credentials_is_refused() {
        for text in ["", "credentials: []\n", "credentials:\n", "credentials: SECRET\n", "- SECRET\n", "a: [\n"] {
            let problems = load(text).unwrap_err();
            assert!(!problems.join("").contains("SECRET"), "{text:?}: {problems:?}");
        }
        let mut problems = Problems::default();
        Book::load(Path::new("/no/such/file"), &mut problems);
        assert_eq!(problems.0.len(), 1);
    }

    #[test]
    fn what_is_left_of_a_rate_survives_a_reading_unless_the_rate_is_another() {
        let read = |rates: &str| load(&format!("credentials:\n - {{name: a, token: a{rates}}}\n")).unwrap();
        let meter = |book: &Book| book.find(&Shown::Bearer(b"a")).unwrap().meter.clone();
        let former = read(", requests_per_second: 5");
        for (rates, is_kept) in [(", requests_per_second: 5", true), (", requests_per_second: 6", false), ("", false)] {
            let mut book = read(rates);
            book.go_on_from(&former);
            let (old, new) = (meter(&former).unwrap(), meter(&book));
            assert_eq!(new.is_some_and(|new| Arc::ptr_eq(&old, &new)), is_kept, "{rates}");
        }
    }

    #[test]
    fn the_example_has_every_key() {
        let file = include_str!("../../../conf/kproxy.credentials.yaml");
        load(file).unwrap();
        let in_force: String =
            file.lines().filter(|line| !line.starts_with('#')).map(|line| line.replacen("# ", "", 1) + "\n").collect();
        for key in ["name", "token_sha256", "user", "password_sha256", "topics", "requests_per_second"] {
            assert!(file.contains(&format!("{key}:")), "{key}");
        }
        for key in ["token", "password", "bytes_per_second", "burst_seconds"] {
            assert!(in_force.contains(&format!(" {key}:")), "{key}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let book = Arc::new(load("credentials: [{name: a, token: a}]").unwrap());
        let credentials = CredentialsFile { path: file.path().to_owned(), book };
        for (mode, is_told) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o700, false)] {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(credentials.exposure().is_some(), is_told, "{mode:o}");
        }
    }
}
