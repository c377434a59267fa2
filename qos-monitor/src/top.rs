//! `top`: the devices by rate, live.

use std::time::Duration;

use anyhow::{Context, Result};
use qos::{BitRate, WaitCause};
use qos_monitor::Client;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Constraint;
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Row, Table};

use crate::devices::{DeviceRow, rows};
use crate::text;

/// How often it looks.
const REFRESH: Duration = Duration::from_millis(500);
/// Characters of a bar.
const BAR: u64 = 30;

pub(crate) fn run(client: &mut Client) -> Result<()> {
    let mut terminal = ratatui::try_init().context("terminal cannot be set up")?;
    let result = watch(client, &mut terminal);
    ratatui::restore();
    result
}

fn watch(client: &mut Client, terminal: &mut ratatui::DefaultTerminal) -> Result<()> {
    let mut before = client.state()?;
    loop {
        if event::poll(REFRESH)? {
            match event::read()? {
                Event::Key(key) if quits(key) => return Ok(()),
                // Whatever else comes (a resize) only has the picture drawn sooner.
                _ => {}
            }
        }
        let after = client.state()?;
        let mut rows = rows(Some(&before), &after);
        rows.sort_by_key(|row| std::cmp::Reverse(row.achieved()));
        terminal.draw(|frame| draw(frame, &rows))?;
        before = after;
    }
}

fn quits(key: KeyEvent) -> bool {
    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

fn draw(frame: &mut Frame<'_>, rows: &[DeviceRow]) {
    let head = [
        "DEVICE",
        "HOP",
        "PROMISED",
        "OFFERED",
        "ACHIEVED",
        "OF PROMISE | AND LIMIT",
        "MAIN WAIT",
    ];
    let lines = rows.iter().map(|row| {
        let limit = row.rate.pir.unwrap_or(row.link_rate).min(row.link_rate);
        Row::new([
            Cell::new(row.device.clone()),
            Cell::new(row.hop.clone()),
            Cell::new(text::promise(row.rate.cir)),
            Cell::new(text::rate(row.offered())),
            Cell::new(text::rate(row.achieved())),
            Cell::new(bar(row.achieved(), row.rate.cir, limit)),
            Cell::new(row.main_wait.map_or("-", WaitCause::name)),
        ])
    });
    let widths = [
        Constraint::Min(12),
        Constraint::Min(20),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(32),
        Constraint::Length(15),
    ];
    let title = Line::from(format!(" {} devices by rate, q quits ", rows.len()));
    let table = Table::new(lines, widths)
        .header(Row::new(head).bold())
        .block(Block::bordered().title(title));
    frame.render_widget(table, frame.area());
}

/// `rate` as a part of `limit`, with a mark where the promise is.
fn bar(rate: BitRate, promised: BitRate, limit: BitRate) -> String {
    let place = |rate: BitRate| {
        let place = u128::from(rate.bits_per_second()) * u128::from(BAR);
        let place = place.checked_div(u128::from(limit.bits_per_second()));
        u64::try_from(place.unwrap_or(0))
            .unwrap_or(u64::MAX)
            .min(BAR)
    };
    let (filled, mark) = (place(rate), place(promised));
    let cells = (0..=BAR).map(|at| match at {
        at if at == mark && !promised.is_zero() => '|',
        at if at < filled => '█',
        at if at < BAR => '·',
        _ => ' ',
    });
    cells.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn rate(text: &str) -> BitRate {
        text.parse().unwrap()
    }

    #[test]
    fn bar_shows_rate_promise_and_limit() {
        let empty = "·".repeat(30);
        assert_eq!(bar(rate("0"), rate("0"), rate("1G")).trim_end(), empty);
        let full = "█".repeat(30);
        assert_eq!(bar(rate("2G"), rate("0"), rate("1G")).trim_end(), full);
        let half = bar(rate("500M"), rate("200M"), rate("1G"));
        assert_eq!(
            half.trim_end(),
            format!("{}|{}{}", "█".repeat(6), "█".repeat(8), "·".repeat(15))
        );
        // The whole link promised, and a link without a rate.
        assert!(bar(rate("0"), rate("1G"), rate("1G")).ends_with('|'));
        assert_eq!(bar(rate("1"), rate("0"), rate("0")).trim_end(), empty);
    }

    #[test]
    fn devices_are_drawn_with_their_main_wait() {
        let row = DeviceRow {
            device: "vn01.vm1".to_owned(),
            vm: None,
            hop: "host1 uplink".to_owned(),
            rate: qos::DeviceRate::new(rate("300M"), Some(rate("600M"))).unwrap(),
            offered_bytes: 100_000_000,
            achieved_bytes: 75_000_000,
            queued_bytes: 0,
            nanos: Some(1_000_000_000),
            main_wait: Some(WaitCause::OwnLimit),
            link_rate: rate("1G"),
        };
        let mut terminal = Terminal::new(TestBackend::new(130, 6)).unwrap();
        terminal.draw(|frame| draw(frame, &[row])).unwrap();
        let cells = terminal.backend().buffer().content();
        let text: String = cells.iter().map(|cell| cell.symbol()).collect();
        for word in ["vn01.vm1", "300 Mb/s", "800 Mb/s", "600 Mb/s", "own-limit"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}
