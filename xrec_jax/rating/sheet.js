"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const sheet = JSON.parse($("sheet").textContent);
  const total = sheet.steps.length;
  const compare = {
    id: "preference",
    label: "Which explanation is better?",
    text: "All in all, for this person and this item.",
    choices: [["first", "First is better", "1"], ["tie", "No difference", "0"], ["second", "Second is better", "2"]],
  };
  const prefix = `xrec-ratings/${sheet.sheet}/`;
  const roomy = window.matchMedia("(min-width: 56rem)");
  let state = null; // what is kept: rater, place, started, answers
  let active = 0; // question that number keys answer
  let shown = null; // case of the screen before
  let since = null; // when the current step came on the screen

  // Text only: nothing in an explanation can become markup.
  const make = (tag, text = "", attributes = {}) => {
    const node = document.createElement(tag);
    node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const show = (id) => {
    for (const name of ["start", "work", "done"]) $(name).hidden = name !== id;
    $("bar").hidden = id === "start";
    window.scrollTo(0, 0);
  };

  // ---- progress in this browser
  const read = (name) => {
    try {
      return JSON.parse(localStorage.getItem(prefix + name));
    } catch {
      return null;
    }
  };
  const keep = () => {
    try {
      localStorage.setItem(prefix + state.rater, JSON.stringify(state));
    } catch {
      $("unkept").hidden = false;
    }
  };
  const names = () => {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length));
    } catch {
      return [];
    }
  };

  // ---- answers
  const asked = (step) => (step.kind === "rate" ? sheet.questions : [compare]);
  const given = (step) => state.answers[step.id]?.values ?? {};
  const open = (step) => asked(step).filter((question) => given(step)[question.id] === undefined);
  const finished = () => sheet.steps.filter((step) => open(step).length === 0).length;
  const set = (question, value) => {
    const step = sheet.steps[state.place];
    const answer = (state.answers[step.id] ??= { values: {}, seconds: 0 });
    answer.values[question.id] = value;
    $("missing").textContent = "";
    keep();
    progress();
  };
  const stop = () => {
    if (since === null || !state) return;
    const answer = state.answers[sheet.steps[state.place]?.id];
    if (answer) {
      answer.seconds = Math.round(10 * (answer.seconds + (performance.now() - since) / 1000)) / 10;
      since = performance.now();
      keep();
    }
  };

  // ---- screens
  const progress = () => {
    const number = finished();
    $("progress").max = total;
    $("progress").value = number;
    $("count").textContent = `${number} of ${total}`;
    $("who").textContent = state.rater;
  };
  const card = (step) => {
    const about = sheet.cases[step.case];
    const plain = about.prompt !== undefined;
    $("item").textContent = plain ? "" : about.item.title;
    $("note").textContent = plain ? "" : about.item.note;
    $("about").hidden = plain || !about.profile;
    $("profile").textContent = about.profile ?? "";
    $("before").hidden = plain || !about.history.length;
    $("entries").textContent = plain ? "" : `${about.history.length}`;
    $("prompt").textContent = about.prompt ?? "";
    $("history").replaceChildren(
      ...(about.history ?? []).map((entry) => {
        const line = make("li", entry.title);
        if (entry.note) line.append(make("span", entry.note));
        return line;
      }),
    );
  };
  const field = (question, number, values) => {
    const box = make("fieldset");
    const legend = make("legend");
    legend.append(make("strong", question.label), make("span", question.text));
    const scale = make("div", "", { class: question.choices ? "scale choice" : "scale" });
    const choices = question.choices ?? Array.from({ length: sheet.high - sheet.low + 1 }, (_, i) => [sheet.low + i, `${sheet.low + i}`]);
    for (const [value, text] of choices) {
      const label = make("label");
      const input = make("input", "", { type: "radio", name: question.id, value });
      input.checked = values[question.id] === value;
      input.addEventListener("change", () => set(question, value));
      if (!question.choices && (value === sheet.low || value === sheet.high)) {
        input.setAttribute("aria-label", `${text}, ${value === sheet.low ? question.low : question.high}`);
      }
      label.append(input, make("span", text));
      scale.append(label);
    }
    box.append(legend, scale);
    if (question.low) {
      const ends = make("div", "", { class: "ends", "aria-hidden": "true" });
      ends.append(make("span", `${sheet.low} ${question.low}`), make("span", `${sheet.high} ${question.high}`));
      box.append(ends);
    }
    box.addEventListener("focusin", () => mark(number));
    box.addEventListener("pointerdown", () => mark(number));
    return box;
  };
  const boxes = () => [...$("questions").children];
  const mark = (number) => {
    active = number;
    boxes().forEach((box, i) => box.classList.toggle("active", i === number));
  };
  const focus = (number) => {
    mark(number);
    const box = boxes()[number];
    (box.querySelector(":checked") ?? box.querySelector("input")).focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest" });
  };
  const render = () => {
    keep();
    progress();
    if (state.place >= total) {
      since = null;
      show("done");
      $("saved").textContent = "";
      $("thanks").focus();
      return;
    }
    const step = sheet.steps[state.place];
    const two = step.kind === "compare";
    card(step);
    $("step").textContent = `${two ? "Two explanations" : "Explanation"}, screen ${state.place + 1} of ${total}`;
    $("texts").className = two ? "two" : "";
    $("texts").replaceChildren(
      ...step.texts.map((text, i) => {
        const quote = make("blockquote");
        if (two) quote.append(make("b", i ? "Second" : "First"));
        quote.append(make("span", text || "(no text)"));
        return quote;
      }),
    );
    $("questions").replaceChildren(...asked(step).map((question, i) => field(question, i, given(step))));
    $("missing").textContent = "";
    $("back").disabled = state.place === 0;
    $("next").textContent = state.place === total - 1 ? "Finish" : "Next";
    const hint = two
      ? [["1", "first"], ["2", "second"], ["0", "no difference"]]
      : [["1", "to"], ["9", "and"], ["0", "for 10"], ["↑", ""], ["↓", "question"], ["←", ""], ["→", "mark"]];
    $("keys").replaceChildren("Keys: ");
    for (const [key, text] of [...hint, ["Enter", "next"], ["Backspace", "back"]]) $("keys").append(make("kbd", key), ` ${text} `);
    show("work");
    // A narrow screen need not show again what the last one was about.
    if (!roomy.matches && shown === step.case) $("answers").scrollIntoView();
    shown = step.case;
    const first = asked(step).findIndex((question) => given(step)[question.id] === undefined);
    mark(Math.max(first, 0));
    since = performance.now();
    $("step").focus({ preventScroll: true });
  };
  const go = (by) => {
    stop();
    state.place = Math.min(Math.max(state.place + by, 0), total);
    render();
  };
  const next = () => {
    const missing = open(sheet.steps[state.place]);
    if (missing.length) {
      $("missing").textContent = `Please answer: ${missing.map((question) => question.label).join(", ")}`;
      focus(asked(sheet.steps[state.place]).indexOf(missing[0]));
      return;
    }
    go(1);
  };

  // ---- start, copies, export
  const begin = (found) => {
    state = found;
    state.place = Math.min(state.place, total);
    $("before").open = roomy.matches;
    render();
  };
  const fresh = (rater) => ({ rater, place: 0, started: new Date().toISOString(), answers: {} });
  const download = () => {
    stop();
    const record = {
      format: "xrec-ratings", version: 1, sheet: sheet.sheet, rater: state.rater, started: state.started,
      saved: new Date().toISOString(), complete: finished() === total, place: state.place, answers: state.answers,
    };
    const name = `ratings-${sheet.sheet}-${state.rater.replace(/[^\p{L}\p{N}]+/gu, "_")}.json`;
    const link = make("a", "", { download: name });
    link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 1)], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    return name;
  };
  const welcome = () => {
    const texts = sheet.steps.filter((step) => step.kind === "rate").length;
    const rest = total - texts;
    const minutes = Math.max(5, 5 * Math.round((texts * 25 + rest * 15) / 300));
    $("amount").textContent =
      `${sheet.cases.length} recommendations: ${texts} texts to rate` + (rest ? `, ${rest} times two to compare` : "") +
      `. About ${minutes} minutes; you may stop and go on later.`;
    $("resume").replaceChildren(
      ...names().map((name) => {
        const found = read(name);
        const number = Object.keys(found?.answers ?? {}).length;
        const button = make("button", `Go on as ${name}, ${number} of ${total} begun`, { type: "button" });
        button.addEventListener("click", () => begin(found ?? fresh(name)));
        return button;
      }),
    );
    show("start");
  };
  $("enter").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("name").value.trim();
    if (name) begin(read(name) ?? fresh(name));
  });
  $("load").addEventListener("change", async () => {
    try {
      const found = JSON.parse(await $("load").files[0].text());
      if (found.format !== "xrec-ratings" || found.sheet !== sheet.sheet) throw new Error();
      begin({ rater: found.rater, place: found.place, started: found.started, answers: found.answers });
    } catch {
      $("problem").textContent = "That file is not a copy of this sheet.";
    }
  });
  $("answers").addEventListener("submit", (event) => {
    event.preventDefault();
    next();
  });
  $("back").addEventListener("click", () => go(-1));
  $("review").addEventListener("click", () => go(-total));
  $("copy").addEventListener("click", download);
  $("save").addEventListener("click", () => {
    $("saved").textContent = `Saved as ${download()} among your downloads.`;
  });

  roomy.addEventListener("change", () => {
    $("before").open = roomy.matches;
  });

  // ---- keys
  document.addEventListener("keydown", (event) => {
    if ($("work").hidden || event.ctrlKey || event.altKey || event.metaKey) return;
    const step = sheet.steps[state.place];
    const questions = asked(step);
    const inside = event.target instanceof HTMLInputElement;
    if (/^[0-9]$/.test(event.key)) {
      const question = questions[active];
      const value = question.choices
        ? question.choices.find((choice) => choice[2] === event.key)?.[0]
        : event.key === "0" ? 10 : Number(event.key);
      const input = [...boxes()[active].querySelectorAll("input")].find((found) => found.value === String(value));
      if (!input) return;
      event.preventDefault();
      input.checked = true;
      set(question, value);
      focus(Math.min(active + 1, questions.length - 1));
    } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && questions.length > 1) {
      event.preventDefault();
      const by = event.key === "ArrowDown" ? 1 : -1;
      focus(Math.min(Math.max(active + (inside ? by : 0), 0), questions.length - 1));
    } else if (event.key.startsWith("Arrow") && !inside) {
      event.preventDefault();
      focus(active);
    } else if (event.key === "Enter" && !event.target.closest("button, summary")) {
      event.preventDefault();
      next();
    } else if (event.key === "Backspace" && state.place > 0) {
      event.preventDefault();
      go(-1);
    }
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      stop();
      since = null;
    } else if (state && state.place < total) since = performance.now();
  });
  window.addEventListener("pagehide", stop);
  welcome();
})();
