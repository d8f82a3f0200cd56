// router/prompt_ids.h: a prompt's tokens, which never change once they are there. Copies share
// them: the n answers to one prompt, and the requests that wait, hold it once. Threads may share
// one.
#pragma once

#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "common/ids.h"

namespace switchyard {

class PromptIds {
 public:
  PromptIds() = default;
  PromptIds(std::vector<TokenId> ids)  // NOLINT: what makes them makes a vector
      : ids_(std::make_shared<const std::vector<TokenId>>(std::move(ids))) {}
  PromptIds(std::initializer_list<TokenId> ids) : PromptIds(std::vector<TokenId>(ids)) {}

  const std::vector<TokenId>& ids() const {
    static const std::vector<TokenId> none;
    return ids_ != nullptr ? *ids_ : none;
  }
  operator const std::vector<TokenId>&() const { return ids(); }  // NOLINT: reads like one
  size_t size() const { return ids().size(); }
  bool empty() const { return ids().empty(); }
  TokenId operator[](size_t i) const { return ids()[i]; }
  auto begin() const { return ids().begin(); }
  auto end() const { return ids().end(); }
  friend bool operator==(const PromptIds& a, const std::vector<TokenId>& b) { return a.ids() == b; }

 private:
  std::shared_ptr<const std::vector<TokenId>> ids_;  // null: none
};

}  // namespace switchyard
