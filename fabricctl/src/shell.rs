//! The interactive shell: a prompt, history and completion.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use fabricctl::client::Client;
use fabricctl::complete::candidates;
use fabricctl::session::{Flow, Session};
use reedline::{
    ColumnarMenu, Completer, CompletionResult, DefaultPrompt, DefaultPromptSegment, Emacs,
    FileBackedHistory, KeyCode, KeyModifiers, MenuBuilder, Reedline, ReedlineEvent, ReedlineMenu,
    Signal, Span, Suggestion, default_emacs_keybindings,
};

const MENU: &str = "completion";
/// Lines of the history at most.
const HISTORY_LINES_MAX: usize = 1_000;

/// Completes words with what the language and the controller have.
struct Words(Client);

impl Completer for Words {
    fn complete(&mut self, line: &str, position: usize) -> CompletionResult {
        let begun = line.get(..position).unwrap_or(line);
        // Without a controller there are no names, but the language is the same.
        let names = |kind| {
            let views = self.0.list(kind, "*").unwrap_or_default();
            views.into_iter().map(|view| view.name).collect()
        };
        let start = begun.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let suggestions: Vec<_> = candidates(begun, names)
            .into_iter()
            .map(|value| Suggestion {
                append_whitespace: !value.ends_with('='),
                value,
                span: Span::new(start, position),
                ..Suggestion::default()
            })
            .collect();
        CompletionResult::fresh(suggestions)
    }
}

/// Reads and does lines until the operator leaves.
pub(crate) fn run(session: &mut Session, completer: Client) -> Result<()> {
    let mut keys = default_emacs_keybindings();
    keys.add_binding(
        KeyModifiers::NONE,
        KeyCode::Tab,
        ReedlineEvent::UntilFound(vec![
            ReedlineEvent::Menu(MENU.to_owned()),
            ReedlineEvent::MenuNext,
        ]),
    );
    let menu = ColumnarMenu::default().with_name(MENU);
    let mut editor = Reedline::create()
        .with_completer(Box::new(Words(completer)))
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(menu)))
        .with_edit_mode(Box::new(Emacs::new(keys)));
    if let Some(file) = history() {
        let history = FileBackedHistory::with_file(HISTORY_LINES_MAX, file)?;
        editor = editor.with_history(Box::new(history));
    }
    let who = session.client().system();
    let user = who.map_or_else(|_nobody| "?".to_owned(), |system| system.user);
    let prompt = DefaultPrompt::new(
        DefaultPromptSegment::Basic(format!("{user}@controller[orimono]")),
        DefaultPromptSegment::Empty,
    );
    loop {
        match editor.read_line(&prompt)? {
            Signal::Success(line) => match session.line(&line) {
                Ok(Flow::Go(output)) => write!(io::stdout(), "{output}")?,
                Ok(Flow::Exit) => return Ok(()),
                Err(failure) => writeln!(io::stdout(), "{failure}")?,
            },
            Signal::CtrlD => return Ok(()),
            _ => {}
        }
    }
}

fn history() -> Option<PathBuf> {
    let home = std::env::var_os("HOME")?;
    Some(PathBuf::from(home).join(".fabricctl_history"))
}
