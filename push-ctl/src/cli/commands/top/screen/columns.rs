//! Tables, column by column.

use ratatui::layout::{Alignment, Constraint};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Cell, Row, Table};

/// A column of a table of `T`s.
pub(super) struct Column<'a, T> {
    head: &'static str,
    width: Constraint,
    alignment: Alignment,
    cell: Box<dyn Fn(&T) -> Cell<'static> + 'a>,
    is_sorted: bool,
    only_if_wide: bool,
}

impl<'a, T> Column<'a, T> {
    pub(super) fn text(
        head: &'static str,
        width: Constraint,
        cell: impl Fn(&T) -> Cell<'static> + 'a,
    ) -> Self {
        Self {
            head,
            width,
            alignment: Alignment::Left,
            cell: Box::new(cell),
            is_sorted: false,
            only_if_wide: false,
        }
    }

    pub(super) fn number(
        head: &'static str,
        width: u16,
        cell: impl Fn(&T) -> Cell<'static> + 'a,
    ) -> Self {
        Self {
            alignment: Alignment::Right,
            ..Self::text(head, Constraint::Length(width), cell)
        }
    }

    /// There is something more important where there is little room. But for what is sorted by.
    pub(super) fn if_wide(self) -> Self {
        Self {
            only_if_wide: !self.is_sorted,
            ..self
        }
    }

    pub(super) fn sorted(self, is_sorted: bool) -> Self {
        Self { is_sorted, ..self }
    }

    const fn is_shown(&self, is_wide: bool) -> bool {
        is_wide || !self.only_if_wide
    }
}

/// A section with a head.
pub(super) fn table<'a, T: 'a>(
    title: &'static str,
    columns: impl AsRef<[Column<'a, T>]>,
    is_wide: bool,
    items: impl IntoIterator<Item = &'a T>,
) -> Table<'static> {
    let columns = columns.as_ref();
    let rows: Vec<_> = rows(columns, is_wide, items).collect();
    with_head(title, columns, is_wide).rows(rows)
}

pub(super) fn rows<'a, T: 'a>(
    columns: &[Column<'_, T>],
    is_wide: bool,
    items: impl IntoIterator<Item = &'a T>,
) -> impl Iterator<Item = Row<'static>> {
    items.into_iter().map(move |item| {
        let shown = columns.iter().filter(|column| column.is_shown(is_wide));
        shown.map(|column| (column.cell)(item)).collect()
    })
}

pub(super) fn with_head<T>(
    title: &'static str,
    columns: &[Column<'_, T>],
    is_wide: bool,
) -> Table<'static> {
    let shown = || columns.iter().filter(|column| column.is_shown(is_wide));
    let head = shown().map(|column| {
        let style = if column.is_sorted {
            Style::new().bold().underlined()
        } else {
            Style::new().bold()
        };
        Cell::from(Text::styled(column.head, style).alignment(column.alignment))
    });
    Table::default()
        .widths(shown().map(|column| column.width))
        .header(head.collect())
        .column_spacing(1)
        .block(section(title))
}

pub(super) fn section(title: impl Into<Line<'static>>) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(Style::new().add_modifier(Modifier::DIM))
        .title(title)
}

pub(super) fn number(text: String) -> Cell<'static> {
    Cell::from(Text::from(text).alignment(Alignment::Right))
}
