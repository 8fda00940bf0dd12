"use strict";
(function () {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const find = (id) => document.getElementById(id);
  const percent = (value, digits) => (100 * value).toFixed(digits === undefined ? 2 : digits) + " %";

  // Elements are made with text alone, never with HTML, so that names stay names.
  function make(tag, options, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(options || {})) {
      if (name === "text") element.textContent = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  // All places first, then the charts: each takes the width that its place has when it is drawn.
  function showCharts(parent, descriptions, figures) {
    const present = descriptions.filter(([name]) => figures[name]);
    for (const [name, title, note, extraClass] of present) {
      if (find("chart-" + name)) continue;
      const plot = make("div", { id: "chart-" + name, role: "img", tabindex: "0",
        "aria-label": title + ". " + note + " Use the arrow keys to read the values." });
      charts.listen(plot, find("spoken"));
      parent.append(make("figure", { class: "chart " + (extraClass || "") },
        make("figcaption", {}, make("b", { text: title }), note), plot));
    }
    for (const [name] of present) charts.draw(find("chart-" + name), figures[name]);
  }

  const CURVES = [
    ["share", "How much classes differ",
      "Share of the weights' variance between classes. In the paper it grows with depth."],
    ["information", "What the choice of experts reveals about the class",
      "Mutual information of class and expert, in bits: 0 if all classes use the experts equally."],
    ["cost", "What input-dependence is worth, layer by layer",
      "One routing function at a time gets its mean weights for all images; whiskers are one standard error."],
    ["kernels", "How far images' kernels differ",
      "Root mean square distance from the mean kernel, relative to the kernels' size: 0 % in a static network. Below " +
      "the line of the weights if experts add little to what all images share, or are alike."],
    ["effective", "Experts in use",
      "2 to the entropy of the mixture: the number of experts if all have equal weights, 1 if only one is used."],
    ["wasted", "Wasted experts",
      "Dead: no image gives it a tenth of an equal share. Duplicates: kernels with a cosine similarity of 0.99 or more."],
  ];
  const LAYER_CHARTS = [
    ["heatmap", "Mean weight by class and expert",
      "Classes with similar weights are next to each other. Each layer has its own colour scale.", "tall"],
    ["spread", "Between classes and within",
      "If the first bar is higher, the expert follows the class, otherwise the single image."],
    ["histogram", "All weights",
      "Peaks at both ends: experts are switched on or off. One peak: they are mixed."],
  ];
  const WORDS = {
    "learned": ["as learned", "each image gets its own weights"],
    "mean": ["mean", "all images get the mean weights: a static network"],
    "shuffled": ["shuffled", "each image gets the weights of another"],
    "top-1": ["top 1", "only the largest weight, scaled to the same sum"],
    "top-2": ["top 2", "only the two largest weights, scaled to the same sum"],
    "top-4": ["top 4", "only the four largest weights, scaled to the same sum"],
  };
  const KINDS = { static: "make static", spare: "spare", needed: "needed", few: "too few images", unknown: "not measured" };

  function showFacts() {
    const learned = report.interventions.find((each) => each.name === "learned");
    const mean = report.interventions.find((each) => each.name === "mean");
    const facts = [[report.images.toLocaleString("en"), "images looked at"]];
    if (report.classes) facts.push([String(report.classes), "classes"]);
    facts.push([String(report.layers.length), "routing functions"]);
    if (learned && learned.top1 !== null) facts.push([percent(learned.top1), "right (top-1)"]);
    facts.push([report.dead + " / " + report.duplicates, "dead experts / duplicate pairs"]);
    if (mean) {
      facts.push(mean.top1 === null
        ? [percent(1 - mean.agreement), "of the predictions change without input-dependence"]
        : [Math.abs(mean.cost).toFixed(2), "points " + (mean.cost < 0 ? "gained" : "lost") + " without input-dependence"]);
    }
    for (const [value, text] of facts) {
      find("facts").append(make("div", { class: "fact" }, make("b", { text: value }), make("span", { text })));
    }
  }

  function showInterventions() {
    const place = find("interventions");
    if (!report.interventions.length) return place.remove();
    const labelled = report.interventions[0].top1 !== null;
    const head = ["routing weights", ...(labelled ? ["top-1 (%)", "change"] : []), "unchanged (%)"];
    const table = make("table", {},
      make("caption", {}, make("b", { text: "What the routing is worth" }),
        "The trained network with other routing weights than its own, on " +
        report.interventions[0].images.toLocaleString("en") + " images. " +
        (labelled ? "Change in points, ± one standard error. " : "") + "Unchanged: images whose predicted class stays."),
      make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col", text })))));
    const body = make("tbody");
    for (const each of report.interventions) {
      const [name, note] = WORDS[each.name] || [each.name, ""];
      const row = make("tr", {}, make("th", { scope: "row", text: name }, make("small", { text: note })));
      if (labelled) {
        row.append(make("td", { text: (100 * each.top1).toFixed(2) }, bar(each.top1)));
        const change = each.name === "learned" ? "–" : signed(-each.cost) + " ± " + each.error.toFixed(2);
        row.append(make("td", { text: change }));
      }
      row.append(make("td", { text: (100 * each.agreement).toFixed(1) }));
      // The headings once more, for screens too narrow for a table.
      [...row.querySelectorAll("td")].forEach((each, index) => each.setAttribute("data-label", head[index + 1]));
      body.append(row);
    }
    table.append(body);
    place.append(table);
  }

  function signed(value) {
    return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
  }

  function bar(share) {
    const fill = make("i");
    fill.style.width = 100 * Math.max(0, Math.min(1, share)) + "%";
    return make("span", { class: "bar", "aria-hidden": "true" }, fill);
  }

  function chip(kind, text) {
    return make("span", { class: "chip " + kind, text: text || KINDS[kind] });
  }

  function showSummary(layer) {
    const facts = [layer.kind + ", " + layer.experts.length + " experts",
      layer.per_example.toFixed(1) + " in use in one image, " + layer.in_all.toFixed(1) + " over all",
      percent(layer.extremes[0], 0) + " of the weights below 0.1, " + percent(layer.extremes[1], 0) + " above 0.9"];
    if (layer.share !== null) facts.push(percent(layer.share, 1) + " of the variance between classes");
    if (layer.information !== null) facts.push(layer.information.toFixed(3) + " bits about the class");
    if (layer.kernels !== null) facts.push("kernels vary by " + percent(layer.kernels, 1) + " over images");
    if (layer.outside) facts.push(layer.outside + " weights outside 0 to 1 stand in the outermost bars");
    find("layer-summary").replaceChildren(
      make("p", {}, chip(layer.verdict.kind), " " + layer.verdict.text),
      make("p", { class: "muted", text: facts.join(" · ") }),
      make("p", { class: "muted", text: (layer.layers.length > 1 ? "Shared by " : "Routes ") + layer.layers.join(", ") }));
  }

  function showExperts(layer) {
    find("experts").replaceChildren(...layer.experts.map((expert, index) => expertCard(expert, index + 1, layer.highest)));
  }

  function expertCard(expert, number, highest) {
    const card = make("article", { class: "card expert" }, make("h4", { text: "Expert " + number + " " }));
    if (expert.dead) card.firstChild.append(chip("warn", "dead"));
    if (expert.twins.length) card.firstChild.append(chip("warn", "duplicate of " + expert.twins.join(", ")));
    card.append(make("p", { class: "muted",
      text: "mean weight " + expert.mean.toFixed(3) + ", " + percent(expert.share, 1) + " of the mixture" }));
    if (expert.images.length) {
      card.append(make("div", { class: "pictures" }, ...expert.images.map((each) => {
        const [source, caption] = report.pictures[each.id];
        return make("figure", {}, make("img", { src: source, alt: caption, title: caption }),
          make("figcaption", { text: each.weight.toFixed(3) }));
      })));
    }
    if (expert.classes.length) {
      card.append(make("ol", { class: "classes", "aria-label": "classes with the highest mean weight" },
        ...expert.classes.map(([name, mean]) => make("li", {}, make("span", { class: "name", text: name, title: name }),
          bar(mean / highest), make("span", { class: "value", text: mean.toFixed(3) })))));
    }
    return card;
  }

  function showLayer(index) {
    const layer = report.layers[index];
    showSummary(layer);
    showCharts(find("layer-charts"), LAYER_CHARTS, layer.charts);
    showExperts(layer);
  }

  function showPicker() {
    const select = find("layer");
    report.layers.forEach((layer, index) => {
      const shared = layer.layers.length > 1 ? " (" + layer.layers.length + " layers)" : "";
      select.append(make("option", { value: index, text: (index + 1) + ". " + layer.title + shared }));
    });
    select.value = report.layers.length - 1; // the last layer is where classes part
    select.addEventListener("change", () => showLayer(Number(select.value)));
    const pictured = Object.keys(report.pictures).length;
    const classes = report.classes ? "the ten classes with the highest mean weight" : "";
    const images = pictured
      ? "the images with the highest weight (this page holds at most " + report.most_pictures + " pictures, up to " +
        report.picture_side + " pixels)" : "";
    find("experts-note").textContent = images || classes
      ? "For each expert, " + [images, classes].filter(Boolean).join(", and ") + "." : "";
    showLayer(Number(select.value));
  }

  function showVerdicts() {
    find("verdicts-note").textContent = (report.classes
      ? "“Make static”: the between-class share, chance taken off, is below " + report.low_share + " %, and the mean weights cost " +
        "at most " + report.free_cost + " points. “Spare”: they cost no more, but do tell classes apart. “Needed”: they cost more. "
      : "“Make static”: with the mean weights at most " + report.free_cost + " % of the predictions change. “Needed”: more do. ") +
      "“Too few images”: the standard error is too large to tell; condconv report --layer-images takes more.";
    report.layers.forEach((layer, index) => {
      const link = make("a", { href: "#layers", text: (index + 1) + ". " + layer.title });
      link.addEventListener("click", () => { find("layer").value = index; showLayer(index); });
      find("verdict-list").append(make("div", { class: "verdict" },
        link, chip(layer.verdict.kind), make("p", { text: layer.verdict.text })));
    });
    if (!report.together) return;
    const count = report.layers.filter((layer) => layer.verdict.kind === "static").length;
    const card = make("div", { class: "card" }, make("p", { text:
      (count === 1 ? "The advised layer" : "All " + count + " advised together") + ", on " + report.together.images.toLocaleString("en") + " images: " +
      (report.together.top1 === null
        ? percent(1 - report.together.agreement) + " of the predictions change."
        : percent(report.together.top1) + " right, a change of " + signed(-report.together.cost) + " ± " +
          report.together.error.toFixed(2) + " points.") }));
    if (report.command) card.append(make("p", { text: "This command makes them ordinary layers, and prints what it costs:" }), make("pre", { text: report.command }));
    find("advice").append(card);
  }

  find("title").textContent = report.title;
  find("subtitle").textContent = report.subtitle;
  find("headline").textContent = report.headline;
  showFacts();
  showInterventions();
  showCharts(find("curves"), CURVES, report.charts);
  showPicker();
  showVerdicts();
})();
