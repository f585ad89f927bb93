//! Gives operators Python's meaning where the engine's differs, by rewriting the parsed template.
//!
//! `%` after a text formats it, `~` joins what `str()` prints, and values that Python can't order or loop over are an
//! error. Each becomes a call of a function that the environment has under a name no template can write.

use minijinja::machinery::ast::{self, BinOpKind, Expr, Spanned, Stmt};

/// Function of `%`.
pub(crate) const MODULO: &str = "%";
/// Function of `~`.
pub(crate) const CONCAT: &str = "~";
/// Functions of the comparisons.
pub(crate) const LESS: &str = "<";
pub(crate) const LESS_EQUAL: &str = "<=";
pub(crate) const GREATER: &str = ">";
pub(crate) const GREATER_EQUAL: &str = ">=";
/// Function around what a loop goes over.
pub(crate) const ITERATE: &str = "(for)";

fn function(op: BinOpKind) -> Option<&'static str> {
    Some(match op {
        BinOpKind::Rem => MODULO,
        BinOpKind::Concat => CONCAT,
        BinOpKind::Lt => LESS,
        BinOpKind::Lte => LESS_EQUAL,
        BinOpKind::Gt => GREATER,
        BinOpKind::Gte => GREATER_EQUAL,
        _ => return None,
    })
}

fn spanned<T, U>(old: &Spanned<T>, new: U) -> Spanned<U> {
    Spanned::new(new, old.span())
}

fn body<'a>(list: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    list.iter().map(rewrite).collect()
}

fn exprs<'a>(list: &[Expr<'a>]) -> Vec<Expr<'a>> {
    list.iter().map(expr).collect()
}

fn option<'a>(value: &Option<Expr<'a>>) -> Option<Expr<'a>> {
    value.as_ref().map(expr)
}

fn called<'a, T>(old: &Spanned<T>, id: &'static str, args: Vec<Expr<'a>>) -> Expr<'a> {
    let args = args.into_iter().map(ast::CallArg::Pos).collect();
    Expr::Call(spanned(old, ast::Call { expr: Expr::Var(spanned(old, ast::Var { id })), args }))
}

/// The template with its operators rewritten.
pub(crate) fn rewrite<'a>(stmt: &Stmt<'a>) -> Stmt<'a> {
    match stmt {
        Stmt::Template(s) => Stmt::Template(spanned(s, ast::Template { children: body(&s.children) })),
        Stmt::EmitExpr(s) => Stmt::EmitExpr(spanned(s, ast::EmitExpr { expr: expr(&s.expr) })),
        Stmt::EmitRaw(s) => Stmt::EmitRaw(spanned(s, ast::EmitRaw { raw: s.raw })),
        Stmt::ForLoop(s) => Stmt::ForLoop(spanned(
            s,
            ast::ForLoop {
                target: expr(&s.target),
                iter: called(s, ITERATE, vec![expr(&s.iter)]),
                filter_expr: option(&s.filter_expr),
                recursive: s.recursive,
                body: body(&s.body),
                else_body: body(&s.else_body),
            },
        )),
        Stmt::IfCond(s) => Stmt::IfCond(spanned(
            s,
            ast::IfCond { expr: expr(&s.expr), true_body: body(&s.true_body), false_body: body(&s.false_body) },
        )),
        Stmt::WithBlock(s) => {
            let assignments = s.assignments.iter().map(|(target, value)| (expr(target), expr(value))).collect();
            Stmt::WithBlock(spanned(s, ast::WithBlock { assignments, body: body(&s.body) }))
        }
        Stmt::Set(s) => Stmt::Set(spanned(s, ast::Set { target: expr(&s.target), expr: expr(&s.expr) })),
        Stmt::SetBlock(s) => Stmt::SetBlock(spanned(
            s,
            ast::SetBlock { target: expr(&s.target), filter: option(&s.filter), body: body(&s.body) },
        )),
        Stmt::AutoEscape(s) => {
            Stmt::AutoEscape(spanned(s, ast::AutoEscape { enabled: expr(&s.enabled), body: body(&s.body) }))
        }
        Stmt::FilterBlock(s) => Stmt::FilterBlock(spanned(
            s,
            ast::FilterBlock { filter: expr(&s.filter), filter_span: s.filter_span, body: body(&s.body) },
        )),
        Stmt::Block(s) => {
            Stmt::Block(spanned(s, ast::Block { name: s.name, required: s.required, body: body(&s.body) }))
        }
        Stmt::Import(s) => Stmt::Import(spanned(s, ast::Import { expr: expr(&s.expr), name: expr(&s.name) })),
        Stmt::FromImport(s) => {
            let names = s.names.iter().map(|(name, alias)| (expr(name), option(alias))).collect();
            Stmt::FromImport(spanned(s, ast::FromImport { expr: expr(&s.expr), names }))
        }
        Stmt::Extends(s) => Stmt::Extends(spanned(s, ast::Extends { name: expr(&s.name) })),
        Stmt::Include(s) => {
            Stmt::Include(spanned(s, ast::Include { name: expr(&s.name), ignore_missing: s.ignore_missing }))
        }
        Stmt::Macro(s) => Stmt::Macro(spanned(s, macro_(s))),
        Stmt::CallBlock(s) => Stmt::CallBlock(spanned(
            s,
            ast::CallBlock {
                call: spanned(&s.call, call(&s.call)),
                call_expr_span: s.call_expr_span,
                macro_decl: spanned(&s.macro_decl, macro_(&s.macro_decl)),
            },
        )),
        Stmt::Do(s) => Stmt::Do(spanned(s, ast::Do { call: spanned(&s.call, call(&s.call)) })),
    }
}

fn macro_<'a>(s: &ast::Macro<'a>) -> ast::Macro<'a> {
    ast::Macro { name: s.name, args: exprs(&s.args), defaults: exprs(&s.defaults), body: body(&s.body) }
}

fn call<'a>(e: &ast::Call<'a>) -> ast::Call<'a> {
    ast::Call { expr: expr(&e.expr), args: args(&e.args) }
}

fn args<'a>(list: &[ast::CallArg<'a>]) -> Vec<ast::CallArg<'a>> {
    list.iter()
        .map(|arg| match arg {
            ast::CallArg::Pos(e) => ast::CallArg::Pos(expr(e)),
            ast::CallArg::Kwarg(name, e) => ast::CallArg::Kwarg(name, expr(e)),
            ast::CallArg::PosSplat(e) => ast::CallArg::PosSplat(expr(e)),
            ast::CallArg::KwargSplat(e) => ast::CallArg::KwargSplat(expr(e)),
        })
        .collect()
}

fn expr<'a>(old: &Expr<'a>) -> Expr<'a> {
    match old {
        Expr::Var(e) => Expr::Var(spanned(e, ast::Var { id: e.id })),
        Expr::Const(e) => Expr::Const(spanned(e, ast::Const { value: e.value.clone() })),
        Expr::Slice(e) => Expr::Slice(spanned(
            e,
            ast::Slice { expr: expr(&e.expr), start: option(&e.start), stop: option(&e.stop), step: option(&e.step) },
        )),
        Expr::UnaryOp(e) => {
            let op = match e.op {
                ast::UnaryOpKind::Not => ast::UnaryOpKind::Not,
                ast::UnaryOpKind::Neg => ast::UnaryOpKind::Neg,
            };
            Expr::UnaryOp(spanned(e, ast::UnaryOp { op, expr: expr(&e.expr) }))
        }
        Expr::BinOp(e) => {
            let (left, right) = (expr(&e.left), expr(&e.right));
            match function(e.op) {
                Some(id) => called(e, id, vec![left, right]),
                None => Expr::BinOp(spanned(e, ast::BinOp { op: e.op, left, right })),
            }
        }
        Expr::Compare(e) => {
            let ops = e.ops.iter().map(|op| ast::CompareOp { op: op.op, expr: expr(&op.expr) }).collect();
            Expr::Compare(spanned(e, ast::Compare { expr: expr(&e.expr), ops }))
        }
        Expr::IfExpr(e) => Expr::IfExpr(spanned(
            e,
            ast::IfExpr {
                test_expr: expr(&e.test_expr),
                true_expr: expr(&e.true_expr),
                false_expr: option(&e.false_expr),
            },
        )),
        Expr::Filter(e) => {
            Expr::Filter(spanned(e, ast::Filter { name: e.name, expr: option(&e.expr), args: args(&e.args) }))
        }
        Expr::Test(e) => Expr::Test(spanned(e, ast::Test { name: e.name, expr: expr(&e.expr), args: args(&e.args) })),
        Expr::GetAttr(e) => Expr::GetAttr(spanned(e, ast::GetAttr { expr: expr(&e.expr), name: e.name })),
        Expr::GetItem(e) => {
            Expr::GetItem(spanned(e, ast::GetItem { expr: expr(&e.expr), subscript_expr: expr(&e.subscript_expr) }))
        }
        Expr::Call(e) => Expr::Call(spanned(e, call(e))),
        Expr::List(e) => Expr::List(spanned(e, ast::List { items: exprs(&e.items) })),
        Expr::Tuple(e) => Expr::Tuple(spanned(e, ast::Tuple { items: exprs(&e.items) })),
        Expr::Map(e) => Expr::Map(spanned(e, ast::Map { keys: exprs(&e.keys), values: exprs(&e.values) })),
    }
}
